"""Rounding learned by division: every weight is divided by its own factor before it is rounded.

    u = W / (s F)      W_hat = s (clip(round(u) + zero_point, 0, Q) - zero_point)

Paper:   Lee, Kim, Jeong, Yang, Jung, Kim, Kim, "FlexRound: Learnable Rounding based on Element-wise
         Division for Post-Training Quantization", ICML 2023, Eq. (2).
Idea:    Only s stands in what is stored.  The gradient of u to log F is -u: large weights move
         further, by several steps where it pays, which adding 0 or 1 cannot do.

Shapes:  O out features, I in features, G groups of inputs per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import SCALE_DTYPE

RATE, RATE_LEVELS, RATE_POWER = 0.01, 4, 1.5
"""Best first rates fell with the levels by about this power: see ``division_rate``."""


def division_rate(levels: int) -> float:
    """First learning rate of log factors and scales: 0.01 at 2 bits, 0.0035 at 3, 0.00125 at 4.

    A step of this size changes large codes by a part of a step of the grid.
    """
    return float(RATE * (RATE_LEVELS / levels) ** RATE_POWER)


class DividedRounding:
    """The rounding of one weight; the caller trains what ``log_factor`` gives, and ``log_scale``.

    The start, with all of them 0, is rounding to nearest.
    """

    def __init__(self, W_OI: Tensor, grid: AffineGrid, log_factor: Callable[[], Tensor]) -> None:
        """``log_factor``: log F, broadcasts to [O, I]."""
        self._W_OI, self._grid, self._log_factor = W_OI, grid, log_factor
        self._zero_point = grid.zero_point.unsqueeze(-1)
        self.log_scale = torch.zeros_like(grid.scale).requires_grad_()

    def weight(self) -> Tensor:
        """W_hat [O, I] with gradients."""
        code, scale = self._code(), self._scale().unsqueeze(-1)
        return ((code - self._zero_point) * scale).view(self._W_OI.shape)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """uint8 [O, I]"""
        return self._code().to(torch.uint8).view(self._W_OI.shape)

    @torch.no_grad()
    def grid(self) -> AffineGrid:
        """With the scales as they are now."""
        return replace(self._grid, scale=self._scale())

    def _scale(self) -> Tensor:
        """As it is stored."""
        exact = self._grid.scale * self.log_scale.exp()
        return exact + (exact.detach().to(SCALE_DTYPE).float() - exact.detach())

    def _code(self) -> Tensor:
        """[O, G, J]"""
        scale = self._scale().unsqueeze(-1)
        divided_OI = self._W_OI * (-self._log_factor()).exp()
        u = divided_OI.view(*scale.shape[:2], -1) / scale
        rounded = u + (u.round() - u).detach()
        return (rounded + self._zero_point).clamp(0, self._grid.levels - 1)
