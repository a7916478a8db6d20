"""lqlora: of a sum of codes and factors, the factors are trained.

Paper:   Guo, Greengard, Xing, Kim, "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for
         Efficient Language Model Finetuning", ICLR 2024: its fine-tuning side.
Idea:    W = Q + B A was found together, so that training begins with what rounding had lost
         already put back, not at zero.  Q stays; A and B are trained, without decay, because they
         carry weight.

Shapes:  O out features, I in features, R rank; P = R (O + I).
Differs from the paper: nothing known beside the optimizer's rate, which is relative.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blockwright.heal.adapter import Family, HostKind
from blockwright.heal.stored import StoredAdapter


@dataclass(frozen=True, kw_only=True)
class FactorsOfSums(StoredAdapter):
    """The factors beside the codes."""

    paper: ClassVar[str] = "Guo et al., LQ-LoRA, ICLR 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.SUM})
    only: ClassVar[str] = "plus."


ADAPTER = FactorsOfSums
