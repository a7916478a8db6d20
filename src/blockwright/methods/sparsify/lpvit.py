"""Lpvit: whole blocks of weights stay or go, by what the loss, not the layer, makes of them.

Paper:   Xu, Wang, Li, et al., "LPViT: Low-Power Semi-structured Pruning for Vision Transformers",
         ECCV 2024.
Idea:    Blocks that hardware can skip are ranked by a second-order model of the loss: an error of
         output r counts by the second moment of the loss gradient there, that of input j by its
         own second moment.  Rows that share a fate no longer cancel out of the comparison, which
         is where it differs from Wanda.  Blocks hurt far more than single weights at equal
         sparsity.

Equations -> code
    distortion of a block   sum_rj G_r w_rj^2 h_j      solve, best_mask of the format
    refit on the mask       masked_solution            least squares, rows apart
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM, OUTPUT_GRADIENT.   Fills: every sparse format; made for panels and blocks.
Cost:    a sort of the units of every panel; the refit as in numerics/masked_refit.
Differs from the paper:
    1. Ranked inside a panel of rows, so that all panels keep equally many; by the diagonals of the
       curvature, not by |w g| of one backward pass.
    2. How much of which layer goes is the plan's business: it solves over the same predicted
       losses, exactly, where the paper cuts all layers' distortion curves at one slope.
    3. Kept weights are refitted (refit=false: left).
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_panels.py: error against magnitude, gain of the refit; the plan against
         one slope.
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


@dataclass(frozen=True, kw_only=True)
class Lpvit(LinearMethod):
    """Keep the blocks whose loss would cost most."""

    paper: ClassVar[str] = "Xu et al., LPViT, ECCV 2024"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    refit: bool = True
    damping: float = 0.01
    """Of the refit."""

    def __post_init__(self) -> None:
        check_damping("lpvit", self.damping)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM, Statistic.OUTPUT_GRADIENT})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("lpvit", format)
        check_finite(W_OI)
        h_I = input_gram(statistics).diagonal()
        G_O = statistics.need(Statistic.OUTPUT_GRADIENT)
        mask_OI = target.best_mask(W_OI.abs() * h_I.sqrt() * G_O.sqrt()[:, None])
        damping = self.damping if self.refit else 0.0
        return masked_solution(W_OI, mask_OI, target, statistics, damping)


METHOD = Lpvit
