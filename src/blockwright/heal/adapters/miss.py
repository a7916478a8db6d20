"""miss: one small matrix, added to every chunk of a weight's inputs.

Paper:   Kang, Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
         Structure", 2024 (Bone, later DiSHA).
Idea:    Chunks of the inputs share their change of the weight, so that one matrix that begins at
         zero is all there is to train: no random factor, full gradients from the first step, half
         the parameters of LoRA at equal rank.

Equations -> code     u = sum_i x_i,  y = x W^T + u D,  D [R, O]     peft
                      = LoRA with A = [I I ... I] and B = D^T        peft_factors
Shapes:  O out features, I in features, R chunk; P = R O.
Differs from the paper: nothing known (peft's own layers).
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.heal.adapter import Family, Host, Setting
from blockwright.heal.through_peft import NAME, PeftAdapter, peft_library


@dataclass(frozen=True, kw_only=True)
class Miss(PeftAdapter):
    """Shared chunks."""

    paper: ClassVar[str] = "Kang and Yin, MiSS (Bone), 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED
    peft_type: ClassVar[str] = "MISS"

    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CandidateError(f"option miss@rank: got {self.rank}, needs 1 or more")

    def refusal(self, host: Host) -> str:
        if host.packed is None and host.site.transposed:
            return "peft has it for linears only, not for transposed ones"
        return super().refusal(host)

    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        return peft_library("miss").MissConfig(
            r=self.rank, target_modules=[host.path for host in hosts]
        )

    def pace(self, name: str, host: Host) -> float:
        return 4.0 * host.weight().square().mean().sqrt().item()

    def peft_factors(self, layer: Any) -> tuple[Tensor, Tensor]:
        shared_RO = layer.miss_block[NAME].detach()
        rank, inputs = len(shared_RO), layer.in_features
        right_RI = torch.eye(rank).repeat(1, -(-inputs // rank))[:, :inputs]
        return shared_RO.T, right_RI


ADAPTER = Miss
