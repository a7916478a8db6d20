"""EfficientQAT: weights and scales trained together through the rounding (Block-AP).

Paper:   Chen, Shao, Xu, Wang, Gao, Zhang, Luo, "EfficientQAT: Efficient Quantization-Aware Training
         for Large Language Models", ACL 2025.  Code: OpenGVLab/EfficientQAT.
Idea:    Quantization-aware training needs no end-to-end loss: each part learns its own output.  All
         parameters learn: the weights decide their codes, through a rounding that lets gradients
         pass, and the scales follow.  As with all methods that move every weight at once, strongly
         correlated inputs are better left to one that goes column by column.

Equations -> code
    Eq. (1)-(2)   _Trained.weight   W_hat = s (clip(round(W / s) + z, 0, Q) - z)
    Eq. (3)-(5)   _Trained.weight   gradients: autograd of it, rounding passed through
    loss          tune_on_gram      tr(D H D^T), in units of round-to-nearest's
Shapes:  O out features, I in features, G groups of inputs per row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory six copies of W.
Differs from the paper:
    1. One linear at a time on the Gram of its inputs.  The block form, with scales and codes
       learned from the block's own output, is local healing (``refine.healing``).
    2. Zero points stay.
    3. The best of 50 moments is returned, or the start.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: error against rounding to nearest: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import GridSolution

SCALE_RATE = 2.0
"""Rate of scales, as a multiple of that of weights; both relative to the middle scale."""


@dataclass(frozen=True, kw_only=True)
class EfficientQat(LearnedRounding):
    """Weights and scales trained through the rounding."""

    paper: ClassVar[str] = "Chen et al., EfficientQAT, ACL 2025"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "efficientqat"

    rate: float = 0.01
    """First learning rate of weights, in steps of the grid (the median scale)."""

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        state = _Trained(W_OI, start.grid)
        rate = self.rate * start.grid.scale.median().item()
        leaves = [(state.W_OI, rate), (state.s_OG, SCALE_RATE * rate)]
        self.tune(state.weight, leaves, W_OI, start)
        return state.solution()


class _Trained:
    """The two leaves, and the weight that they stand for."""

    def __init__(self, W_OI: Tensor, grid: AffineGrid) -> None:
        self._grid, self._least = grid, grid.scale.min().item() / 16
        self.W_OI = W_OI.clone().requires_grad_()
        self.s_OG = grid.scale.clone().requires_grad_()

    def weight(self) -> Tensor:
        """W_hat [O, I] with gradients to both."""
        z = self._grid.zero_point.unsqueeze(-1)
        s = self._scale().unsqueeze(-1)
        u = self.W_OI.view(*s.shape[:2], -1) / s
        code = (u + (u.round() - u).detach() + z).clamp(0, self._grid.levels - 1)
        return ((code - z) * s).view(self.W_OI.shape)

    @torch.no_grad()
    def solution(self) -> GridSolution:
        """As it stands."""
        grid = replace(self._grid, scale=self._scale())
        return GridSolution(codes_OI=grid.encode(self.W_OI, slice(None)), grid=grid)

    def _scale(self) -> Tensor:
        """Positive, and as it is stored."""
        s_OG = self.s_OG.clamp(min=self._least)
        return s_OG + (s_OG.detach().to(SCALE_DTYPE).float() - s_OG.detach())


METHOD = EfficientQat
