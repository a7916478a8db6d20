"""Magnitude: the smallest weights go.

Paper:   Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
         Networks", NeurIPS 2015; the control of every sparsity paper.
Idea:    With uncorrelated inputs of equal size the error of a zeroed weight is its square.  Inputs
         of transformers are neither, so this needs no data and loses to everything that has some.

Equations -> code
    score = |W|                    solve
    mask = the K largest per row   best_mask     or N of every M
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   nothing; INPUT_GRAM with refit=true.   Fills: every sparse format.
Cost:    a sort of every row; with refit see numerics/masked_refit.
Differs from the paper: no retraining; rows, not the whole network, share a threshold.
Raises:  NumericalError when W is not finite, or with refit when no token reached the site.
Checked: tests/claims/test_sparsify.py: optimal for equal uncorrelated inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
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


@dataclass(frozen=True, kw_only=True)
class Magnitude(LinearMethod):
    """Keep the largest weights."""

    paper: ClassVar[str] = "Han et al., Learning both Weights and Connections, NeurIPS 2015"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    refit: bool = False
    damping: float = 0.01
    """Of the refit."""

    def __post_init__(self) -> None:
        check_damping("magnitude", self.damping)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM}) if self.refit else frozenset()

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("magnitude", format)
        check_finite(W_OI)
        mask_OI = target.best_mask(W_OI.abs())
        damping = self.damping if self.refit else 0.0
        return masked_solution(W_OI, mask_OI, target, statistics, damping)


METHOD = Magnitude
