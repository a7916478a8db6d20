"""cfsp: LoRA whose ranks follow how much every block turns its hidden states.

Paper:   Wang, Zhao, Peng, Yang, Xiong, Wang, "CFSP: An Efficient Structured Pruning Framework for
         LLMs with Coarse-to-Fine Activation Information", 2024: its recovery.
Idea:    Blocks that change the direction of their inputs most are those that pruning hurts most;
         they get more of the same budget of ranks.

Equations -> code
    I_l = mean arccos(cos(h_in, h_out)) / pi                  ``Setting.angles``
    p_l = sigmoid((I_l - mean I) / std I)                     shares
    r_l = round(r p_l / mean p), their sum kept               block_ranks
Shapes:  L blocks, R mean rank; P = sum of r_l (O + I).
Differs from the paper:
    1. The deviation of I stands for its constant, and shares are kept within 0.25 to 2.5 of their
       mean: the first block often turns most.
    2. alpha = 2 r_l, so that all blocks have one scale.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from blockwright.heal.adapter import Family, Host, Setting
from blockwright.heal.adapters.lora import Lora
from blockwright.heal.through_peft import peft_library

LEAST_SHARE, LARGEST_SHARE = 0.25, 2.5


def shares(angles_L: Tensor) -> Tensor:
    """p_l [L] over their mean."""
    spread = angles_L.std(correction=0).clamp(min=1e-12)
    p_L = torch.sigmoid((angles_L - angles_L.mean()) / spread)
    return (p_L / p_L.mean()).clamp(LEAST_SHARE, LARGEST_SHARE)


def block_ranks(angles: Sequence[float], mean_rank: int) -> list[int]:
    """Ranks of the blocks, at least 1, ``mean_rank`` in the mean, in the order of the angles."""
    share_L = shares(torch.tensor(angles, dtype=torch.float64))
    total = mean_rank * len(angles)
    wanted_L = (share_L * mean_rank * len(angles) / share_L.sum()).clamp(min=1)
    ranks_L = wanted_L.floor().clamp(min=1)
    while int(ranks_L.sum()) < total:
        ranks_L[int((wanted_L - ranks_L).argmax())] += 1
    while int(ranks_L.sum()) > total:
        larger_L = torch.where(ranks_L > 1, ranks_L - wanted_L, -torch.inf)
        ranks_L[int(larger_L.argmax())] -= 1
    return [int(rank) for rank in ranks_L]


@dataclass(frozen=True, kw_only=True)
class ImportanceRanks(Lora):
    """``rank`` is the mean of all blocks."""

    paper: ClassVar[str] = "Wang et al., CFSP, 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED

    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        ranks = block_ranks(setting.angles(), self.rank)
        pattern = {
            host.path: ranks[host.site.block] for host in hosts if host.site.block is not None
        }
        return peft_library("cfsp").LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            rank_pattern=pattern,
            alpha_pattern={path: 2 * rank for path, rank in pattern.items()},
            target_modules=[host.path for host in hosts],
            fan_in_fan_out=any(host.site.transposed and host.packed is None for host in hosts),
        )

    def rank_at(self, host: Host) -> int:
        return 3 * self.rank


ADAPTER = ImportanceRanks
