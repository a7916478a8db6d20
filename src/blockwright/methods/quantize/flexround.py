"""FlexRound: every weight is divided by a learned factor of its own before it is rounded.

Paper:   Lee, Kim, Jeong, Yang, Jung, Kim, Kim, "FlexRound: Learnable Rounding based on Element-wise
         Division for Post-Training Quantization", ICML 2023.  Code: onliwad101/FlexRound_LRQ.
Idea:    Rounding is trained on the output error.  Division moves large weights further than small
         ones, by several steps where that pays, and the common scale learns beside it.  What is
         stored is an ordinary grid: factors are gone once codes are fixed.  All weights move at
         once, so that strongly correlated inputs are better left to a method that fixes one column
         after another.

Equations -> code
    Eq. (2)   DividedRounding   W_hat = s1 round(W / (s1 S2 s3)), factors as exponentials
    Prop. 3.1 DividedRounding   d u / d log S2 = -u
    loss      tune_on_gram      tr(D H D^T), in units of round-to-nearest's
Shapes:  O out features, I in features, G groups of inputs per row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory six copies of W.
Differs from the paper:
    1. One linear at a time on the Gram of its inputs; the paper tunes a block on its inputs.
    2. Groups of inputs have scales of their own; the paper has one for all or for every row.
    3. Adam in place of 5,000 steps of mixed inputs; the rate falls to a twentieth, not to 0.
    4. The best of 50 moments is returned, or the start.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: error against rounding to nearest and AdaRound: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.tuning import DividedRounding, division_rate
from blockwright.types import GridSolution


@dataclass(frozen=True, kw_only=True)
class FlexRound(LearnedRounding):
    """Learned element-wise division."""

    paper: ClassVar[str] = "Lee et al., FlexRound, ICML 2023"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "flexround"

    rate: float = 0.0
    """First learning rate of log factors and scales; 0: 0.01 at 2 bits, less on finer grids."""

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        log_S2_OI = torch.zeros_like(W_OI).requires_grad_()
        log_s3_O1 = W_OI.new_zeros(len(W_OI), 1).requires_grad_()
        rounding = DividedRounding(W_OI, start.grid, lambda: log_S2_OI + log_s3_O1)
        rate = self.rate or division_rate(start.grid.levels)
        leaves = (log_S2_OI, log_s3_O1, rounding.log_scale)
        self.tune(rounding.weight, [(leaf, rate) for leaf in leaves], W_OI, start)
        return GridSolution(codes_OI=rounding.codes(), grid=rounding.grid())


METHOD = FlexRound
