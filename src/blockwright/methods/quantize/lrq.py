"""LRQ: FlexRound whose factors are a low-rank matrix, with one more for every row and column.

Paper:   Lee, Kim, Yang, Kwon, Yang, Yoo, Lee, "LRQ: Optimizing Post-Training Quantization for Large
         Language Models by Learning Low-Rank Weight-Scaling Matrices", NAACL 2025.
         Code: onliwad101/FlexRound_LRQ.
Idea:    A factor for every weight is as much to learn as the weight itself, from little text.  Rows
         and columns of a weight share what makes them easy or hard to round: few numbers describe
         nearly all of it.

Equations -> code
    Eq. (2)   log_factor        log F = L U + r + c, exp(.) divides the weight
    loss      tune_on_gram      tr(D H D^T), in units of round-to-nearest's
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory six copies of W, little of it the optimizer's.
Differs from the paper: as FlexRound does; rank 16 here, 1,024 and more for 7 billion weights there.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: error against rounding to nearest: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._learning import CHECKS, check_steps, nearest
from blockwright.tuning import DividedRounding, division_rate, tune_on_gram
from blockwright.types import (
    AffineFormat,
    Format,
    GridSolution,
    LinearMethod,
    Statistic,
    Statistics,
)

SEED = 0
"""Of the right factor's start."""


@dataclass(frozen=True, kw_only=True)
class Lrq(LinearMethod):
    """Learned element-wise division of low rank."""

    paper: ClassVar[str] = "Lee et al., LRQ, NAACL 2025"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = AffineFormat  # type: ignore[type-abstract]

    rank: int = 16
    steps: int = 500
    rate: float = 0.0
    """First learning rate; 0: 0.01 at 2 bits, the less the finer the grid."""

    def __post_init__(self) -> None:
        check_steps("lrq", self.steps, self.rate)
        if self.rank < 1:
            raise CandidateError(f"option lrq@rank: got {self.rank}, needs 1 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> GridSolution:
        start = nearest("lrq", W_OI, statistics, format)
        if start.unit == 0 or self.steps == 0:
            return start.solution
        out_features, in_features = W_OI.shape
        random = torch.Generator(W_OI.device).manual_seed(SEED)
        L_OR = W_OI.new_zeros(out_features, self.rank).requires_grad_()
        U_RI = torch.empty(self.rank, in_features, device=W_OI.device)
        U_RI.uniform_(-(in_features**-0.5), in_features**-0.5, generator=random).requires_grad_()
        r_O1 = W_OI.new_zeros(out_features, 1).requires_grad_()
        c_1I = W_OI.new_zeros(1, in_features).requires_grad_()
        rounding = DividedRounding(W_OI, start.grid, lambda: L_OR @ U_RI + r_O1 + c_1I)
        rate = self.rate or division_rate(start.grid.levels)
        tune_on_gram(
            rounding.weight,
            [(leaf, rate) for leaf in (L_OR, U_RI, r_O1, c_1I, rounding.log_scale)],
            W_OI,
            start.H_II,
            unit=start.unit,
            steps=self.steps,
            checks=CHECKS,
        )
        return GridSolution(codes_OI=rounding.codes(), grid=rounding.grid())


METHOD = Lrq
