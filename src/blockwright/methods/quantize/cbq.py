"""CBQ: outlying weights are cut off, rounding is learned with two low-rank factors.

Paper:   Ding, Liu, Tu, Zhang, Li, Hu, Chen, Tang, Xiong, Yin, Wang, "CBQ: Cross-Block Quantization
         for Large Language Models", ICLR 2025.
Idea:    A few weights far from all others stretch the grid of their group: cut back to the largest
         of the others, they cost less than they spoil, sometimes.  The choice to round up or down
         is that of AdaRound, but what is learned are two thin factors, few numbers that need
         little text.  One linear gains little by so few; the paper's gain is that of blocks tuned
         in windows.

Equations -> code
    Alg. 1     outlier_bound   coarse-to-fine detection
    Eq. (7)    _LowRank        V = V0 + A1 A2, h(V) as AdaRound's
    Eq. (6)    solve           loss + regularizer of undecided choices
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory five copies of W.
Differs from the paper:
    1. One linear at a time on the Gram of its inputs, scales fixed.  Windows of blocks are in
       ``refine``.
    2. V0 is AdaRound's start, which gives back the weight; V = A1 A2 alone would forget how near
       every weight is to its neighbours.
    3. Weights are cut off only where that lowers the error on the calibration text.
    4. The best of 50 moments is returned, or the start.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: what is cut off, and error against rounding to nearest: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.outliers import outlier_bound
from blockwright.tuning import SoftRounding
from blockwright.types import Format, GridSolution, Statistics

SEED = 0
"""Of the left factor's start."""


@dataclass(frozen=True, kw_only=True)
class Cbq(LearnedRounding):
    """Cut outliers, learned choice of low rank."""

    paper: ClassVar[str] = "Ding et al., CBQ, ICLR 2025"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "cbq"

    rank: int = 5
    rate: float = 0.01
    pull: float = 1.0
    """Weight of the regularizer at the end; it begins at 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_option("rank", self.rank >= 1, "1 or more")
        self.check_option("pull", self.pull >= 0, "0 or more")

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> GridSolution:
        plain = self.nearest(W_OI, statistics, format)
        if plain.unit == 0:
            return plain.solution
        cut_OI = W_OI.clamp(-(bound := outlier_bound(W_OI.abs())), bound)
        cut = self.nearest(cut_OI, statistics, format)
        if quadratic_error(cut.solution.weight() - W_OI, plain.H_II) < plain.unit:
            return self._learn(W_OI, cut_OI, replace(cut, unit=plain.unit))
        return self.learn(W_OI, plain)

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        return self._learn(W_OI, W_OI, start)

    def _learn(self, W_OI: Tensor, cut_OI: Tensor, start: Nearest) -> GridSolution:
        """Rounding of the cut weight, judged by the outputs of the whole one."""
        grid = start.grid
        least = quadratic_error(start.solution.weight() - W_OI, start.H_II)
        soft = SoftRounding(cut_OI, grid.scale, grid.zero_point, grid.levels)
        low_rank = _LowRank(soft, self.rank)
        error = self.tune(
            low_rank.weight,
            [(low_rank.A1_OR, self.rate), (low_rank.A2_RI, self.rate)],
            W_OI,
            start,
            judged=low_rank.rounded,
            extra_loss=lambda progress: self.pull * progress * soft.regularizer(progress),
        )
        if error >= least:
            return start.solution
        low_rank.place()
        return GridSolution(codes_OI=soft.codes(), grid=grid)


class _LowRank:
    """V = V0 + A1 A2 put into a soft rounding."""

    def __init__(self, soft: SoftRounding, rank: int) -> None:
        self._soft, self._V0_OI = soft, soft.V.detach()
        out_features, in_features = self._V0_OI.shape
        random = torch.Generator(self._V0_OI.device).manual_seed(SEED)
        A1_OR = torch.empty(out_features, rank, device=self._V0_OI.device)
        self.A1_OR = A1_OR.normal_(generator=random).requires_grad_()
        self.A2_RI = self._V0_OI.new_zeros(rank, in_features).requires_grad_()

    def place(self) -> None:
        """Let the soft rounding stand at V."""
        self._soft.V = self._V0_OI + self.A1_OR @ self.A2_RI

    def weight(self) -> Tensor:
        """W_hat [O, I] with gradients to both factors."""
        self.place()
        return self._soft.weight()

    def rounded(self) -> Tensor:
        """W_hat [O, I], decided."""
        self.place()
        return self._soft.rounded()


METHOD = Cbq
