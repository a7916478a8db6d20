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

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.tuning import DividedRounding, division_rate
from blockwright.types import GridSolution

SEED = 0
"""Of the right factor's start."""


@dataclass(frozen=True, kw_only=True)
class Lrq(LearnedRounding):
    """Learned element-wise division of low rank."""

    paper: ClassVar[str] = "Lee et al., LRQ, NAACL 2025"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "lrq"

    rank: int = 16
    rate: float = 0.0
    """First learning rate; 0: 0.01 at 2 bits, the less the finer the grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_option("rank", self.rank >= 1, "1 or more")

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        out_features, in_features = W_OI.shape
        random = torch.Generator(W_OI.device).manual_seed(SEED)
        L_OR = W_OI.new_zeros(out_features, self.rank).requires_grad_()
        U_RI = torch.empty(self.rank, in_features, device=W_OI.device)
        U_RI.uniform_(-(in_features**-0.5), in_features**-0.5, generator=random).requires_grad_()
        r_O1 = W_OI.new_zeros(out_features, 1).requires_grad_()
        c_1I = W_OI.new_zeros(1, in_features).requires_grad_()
        rounding = DividedRounding(W_OI, start.grid, lambda: L_OR @ U_RI + r_O1 + c_1I)
        rate = self.rate or division_rate(start.grid.levels)
        leaves = (L_OR, U_RI, r_O1, c_1I, rounding.log_scale)
        self.tune(rounding.weight, [(leaf, rate) for leaf in leaves], W_OI, start)
        return GridSolution(codes_OI=rounding.codes(), grid=rounding.grid())


METHOD = Lrq
