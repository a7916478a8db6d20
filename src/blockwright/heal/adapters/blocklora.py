"""blocklora: LoRA whose down-projection is one small block, shared by all chunks of the inputs.

Paper:   "One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot
         Learning", 2025.
Idea:    Both factors are cut into n blocks, and the blocks of one factor are one and the same, so
         that n products become additions and one product; parameters and multiplications of that
         side fall by n.

Equations -> code     u = (sum_j x_j) A_s^T,  y = y0 + s u B^T,  A_s [R, I/n], B [O, R]   mode=input
                      u = x A_s^T,  y = y0 + s u (sum_j B_j)^T,  A_s [R/n, I]             mode=rank
Shapes:  O out features, I in features, R rank, n blocks; P = R I/n + R O.
Differs from the paper: its abstract fits two readings, and both are here.  With mode=rank the
         change has rank R/n only.
Raises:  CandidateError for an unknown mode.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from blockwright.errors import CandidateError
from blockwright.heal.adapter import Family, Host
from blockwright.heal.sides import Extra, SideAdapter, SideAttachment

Mode = Literal["input", "rank"]


class SharedDown(Extra):
    """mode=input: chunks of the inputs share A."""

    def __init__(self, shape: tuple[int, int], rank: int, blocks: int, scale: float) -> None:
        super().__init__()
        self.blocks, self.scale = blocks, scale
        self.down = nn.Parameter(torch.empty(rank, shape[1] // blocks))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        chunks: Tensor = x.unflatten(-1, (self.blocks, -1)).sum(-2)
        return self.scale * (chunks @ self.down.T) @ self.up.T

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.up, self.down.repeat(1, self.blocks)


class SharedRank(Extra):
    """mode=rank: parts of the rank share A."""

    def __init__(self, shape: tuple[int, int], rank: int, blocks: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank // blocks, shape[1]))
        self.up = nn.Parameter(torch.zeros(blocks, shape[0], rank // blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.down.T) @ self.up.sum(0).T

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.up.sum(0), self.down


@dataclass(frozen=True, kw_only=True)
class BlockLora(SideAdapter):
    """Low rank with shared blocks."""

    paper: ClassVar[str] = "One Head Eight Arms (Block-LoRA), 2025"
    family: ClassVar[Family] = Family.REPARAMETERIZED

    rank: int = 8
    blocks: int = 4
    mode: Mode = "input"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            allowed = ", ".join(get_args(Mode))
            raise CandidateError(f"option blocklora@mode: got {self.mode!r}, allowed: {allowed}")
        if self.rank < 1 or self.blocks < 1 or (self.mode == "rank" and self.rank % self.blocks):
            raise CandidateError(
                f"blocklora: rank {self.rank} in {self.blocks} blocks; give positive numbers, with"
                " mode=rank a rank that is a multiple of blocks"
            )

    def rank_at(self, host: Host) -> int:
        return self.rank if self.mode == "input" else self.rank // self.blocks

    def refusal(self, host: Host) -> str:
        if found := super().refusal(host):
            return found
        inputs = host.shape[1]
        uneven = self.mode == "input" and inputs % self.blocks
        return f"{self.blocks} blocks do not divide {inputs} inputs" if uneven else ""

    def attach_one(self, host: Host, draw: torch.Generator) -> SideAttachment:
        make = SharedDown if self.mode == "input" else SharedRank
        extra = make(host.shape, self.rank, self.blocks, 2.0)
        nn.init.kaiming_uniform_(extra.down, a=math.sqrt(5), generator=draw)
        up_pace = 1.0 if self.mode == "input" else 1.0 / self.blocks
        return SideAttachment(host, extra, {"down": 1.0, "up": up_pace})


ADAPTER = BlockLora
