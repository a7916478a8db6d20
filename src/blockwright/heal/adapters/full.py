"""full: dense weights are trained as they are.

Paper:   none: full fine-tuning, the upper bound that adapters are compared with.
Idea:    Every weight has its gradient and its states: 16 bytes beside it.

Shapes:  O out features, I in features; P = O I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.heal.adapter import (
    Adapter,
    Attachment,
    Family,
    Host,
    HostKind,
    Replacement,
    Setting,
)
from blockwright.heal.sides import dense_module, dense_replacement
from blockwright.tuning import TrainedTensor


class FullAttachment(Attachment):
    """The weight itself."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        module = host.module
        self.item = TrainedTensor(module.get_parameter("weight"), dtype=torch.float32)
        self.item.pace = 0.3
        self.trained["weight"] = self.item
        self.placed["weight"] = module, "weight"
        self.before = host.weight().clone()
        del module._parameters["weight"]
        module.weight = self.item.start

    @torch.no_grad()
    def effective(self) -> Tensor:
        weight = self.item.stored().float()
        return weight.T if self.host.site.transposed else weight

    def merged(self) -> nn.Module:
        return dense_module(self.host, self.effective())

    def replacement(self, dtype: torch.dtype) -> Replacement:
        return dense_replacement(self.host, self.effective(), dtype)


@dataclass(frozen=True, kw_only=True)
class Full(Adapter):
    """All weights of dense linears."""

    paper: ClassVar[str] = "full fine-tuning"
    family: ClassVar[Family] = Family.SELECTIVE
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.DENSE})

    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        return [FullAttachment(host) for host in hosts]


ADAPTER = Full
