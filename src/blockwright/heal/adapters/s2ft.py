"""s2ft: a few input channels of dense weights, chosen once, trained as one dense slice.

Paper:   Yang, Leng, Guo, Zhao, Nakada, Zhang, Yao, Chen, "S2FT: Efficient, Scalable and
         Generalizable LLM Fine-tuning by Structured Sparsity", NeurIPS 2024.
Idea:    Training whole channels at random forgets less than training everything, and needs
         gradients, optimizer states and saved activations of those channels only.  Merged, the
         model is as fast as before.

Equations -> code     y = x W^T + x[S] dS^T
    selection over all layers jointly                chosen_channels
    partial back-propagation: only x[S] is saved     Slice.forward
Shapes:  O out features, I in features, S chosen channels; P = S O.
Differs from the paper:
    1. Channels are gathered, not brought to the front by permuting coupled weights: the same
       function and the same saved bytes, with no need to know which weights are coupled.
    2. Inputs of every dense linear are on offer, not only those of the output and down projections;
       the outputs (value and up projections) are not.
    3. select=norm takes the channels of the largest weights instead of random ones.
Raises:  CandidateError for an unknown selection or a share outside 0..1.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from blockwright.errors import CandidateError
from blockwright.heal.adapter import (
    Adapter,
    Attachment,
    Family,
    Host,
    HostKind,
    Setting,
)
from blockwright.heal.sides import Extra, SideAttachment

Selection = Literal["random", "norm"]


class Slice(Extra):
    """Some input channels."""

    channels: Tensor

    def __init__(self, channels: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        self.in_features = shape[1]
        self.register_buffer("channels", channels)
        self.slice_OS = nn.Parameter(torch.zeros(shape[0], len(channels)))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.channels] @ self.slice_OS.T

    def factors(self) -> tuple[Tensor, Tensor]:
        right = torch.zeros(len(self.channels), self.in_features)
        right[torch.arange(len(self.channels)), self.channels] = 1.0
        return self.slice_OS, right


@dataclass(frozen=True, kw_only=True)
class StructuredSlices(Adapter):
    """A share of the input channels of all dense hosts."""

    paper: ClassVar[str] = "Yang et al., S2FT, NeurIPS 2024"
    family: ClassVar[Family] = Family.SELECTIVE
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.DENSE})

    share: float = 0.1
    select: Selection = "random"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise CandidateError(f"option s2ft@share: got {self.share}, needs above 0, at most 1")
        if self.select not in get_args(Selection):
            allowed = ", ".join(get_args(Selection))
            raise CandidateError(f"option s2ft@select: got {self.select!r}, allowed: {allowed}")

    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        found: list[Attachment] = []
        for host, channels in zip(hosts, self.chosen_channels(hosts, setting.seed), strict=True):
            if not len(channels):
                continue
            pace = host.weight().square().mean().sqrt().item()
            extra = Slice(channels, host.shape)
            found.append(SideAttachment(host, extra, {"slice_OS": pace}))
            model.set_submodule(host.path, found[-1].module())
        return found

    def chosen_channels(self, hosts: Sequence[Host], seed: int) -> list[Tensor]:
        """Rising channels of every host: so many in all, wherever they fall."""
        widths = [host.shape[1] for host in hosts]
        draw = torch.Generator().manual_seed(seed)
        scores = [
            host.weight().norm(dim=0)
            if self.select == "norm"
            else torch.rand(width, generator=draw)
            for host, width in zip(hosts, widths, strict=True)
        ]
        wanted = max(1, round(self.share * sum(widths)))
        order = torch.cat(scores).sort(descending=True, stable=True).indices[:wanted]
        taken = torch.zeros(sum(widths), dtype=torch.bool)
        taken[order] = True
        return [part.nonzero()[:, 0] for part in taken.split(widths)]


ADAPTER = StructuredSlices
