"""Wanda: prune by weight times the norm of its input, inside each row.

Paper:   Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language
         Models", ICLR 2024.
Idea:    Zeroing one weight alone adds W_oj^2 E[x_j^2] to the output error.  A few inputs of a
         transformer are far larger than the rest, and their weights matter however small they are.
         Correlations are ignored by the score; the refit makes up for them.

Equations -> code
    Eq. (1)  score = |W| sqrt(E[x^2])   score
    mask = the K largest per row        best_mask        or N of every M
    refit (not in the paper)            masked_solution  least squares on the mask
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM (without refit, its diagonal).   Fills: every sparse format.
Cost:    a sort of every row; the refit O(O I^2) to O(O K^3), see numerics/masked_refit.
Differs from the paper: kept weights are refitted unless refit=false, with a damping of 0.1 at
         least where tokens are fewer than twice the inputs; the paper leaves them.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_sparsify.py: optimal for the diagonal model, error against magnitude,
         gain of the refit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
    masked_solution,
)
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)


def score(W_OI: Tensor, h_I: Tensor) -> Tensor:
    """Eq. (1): |W_oj| sqrt(E[x_j^2])."""
    return W_OI.abs() * h_I.sqrt()


@dataclass(frozen=True, kw_only=True)
class Wanda(LinearMethod):
    """Keep the largest products of weight and input norm."""

    paper: ClassVar[str] = "Sun et al., Wanda, ICLR 2024"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    refit: bool = True
    damping: float = 0.01
    """Of the refit."""

    def __post_init__(self) -> None:
        check_damping("wanda", self.damping)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("wanda", format)
        check_finite(W_OI)
        mask_OI = target.best_mask(score(W_OI, input_gram(statistics).diagonal()))
        damping = self.damping if self.refit else 0.0
        return masked_solution(W_OI, mask_OI, target, statistics, damping)


METHOD = Wanda
