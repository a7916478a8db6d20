"""DiscQuant: walk from the weight to a corner of its cell along what changes no output.

Paper:   Chee, Backurs, Heck, Zhang, Kulkarni, Rothvoss, Gopi, "DiscQuant: A Quantization Method for
         Neural Networks Inspired by Discrepancy Theory", 2025.  Code: jerry-chee/DiscQuant.
Idea:    Each weight may become either of its two neighbours on the grid.  Outputs of m samples pin
         down m directions of this box; in all others one may walk until nearly every coordinate is
         at an edge.  A linear term pushes towards the nearer corner, the output error holds back.
         No weight moves beyond its neighbours, where column by column methods may, so that the
         paper's gain is that of a loss of the whole model; here it is one linear's.

Equations -> code
    Eq. (2)   _Cell.weight   W_x = down + x (up - down), x in [0, 1]
    Eq. (5)   solve          max <c, x> - rho loss(x),  c = 2 y - 1, y = the weight's own place
    step      _Cell.weight   gradient of the loss clamped to [-k, k], x clamped to [0, 1]
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory seven copies of W.
Differs from the paper:
    1. The loss is the output error of one linear on the Gram of its inputs; the paper's is the KL
       of the whole model.
    2. rho is set so that the loss's gradient at round-to-nearest has the root mean square ``hold``,
       the linear term's being about 0.6.
    3. x starts at the weight's own place, not at random: nothing depends on a seed.
    4. The best of 50 moments is returned, or round-to-nearest.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: the corner theorem, and error against rounding to nearest: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.numerics.grids import AffineGrid
from blockwright.types import GridSolution

CLAMP = 1.0
"""k: largest gradient of the loss for one coordinate, the linear term's being at most 1."""


@dataclass(frozen=True, kw_only=True)
class DiscQuant(LearnedRounding):
    """Rounding by a walk inside the cell."""

    paper: ClassVar[str] = "Chee et al., DiscQuant, 2025"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "discquant"

    rate: float = 0.05
    hold: float = 0.4
    """How strongly the loss holds back the walk to the corner."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_option("hold", self.hold > 0, "a number above 0")

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        scale = W_OI.numel() / start.unit
        cell = _Cell(W_OI, start.grid)
        D_OI = start.solution.weight() - W_OI
        gradient = (D_OI @ start.H_II * cell.gap_OI).square().mean().sqrt().item() * 2 * scale
        cell.rho = self.hold / gradient
        error = self.tune(
            cell.weight,
            [(cell.x_OI, self.rate)],
            W_OI,
            start,
            judged=cell.rounded,
            extra_loss=lambda _: -(cell.c_OI * cell.x_OI).sum(),
        )
        if error >= start.unit:
            return start.solution
        return GridSolution(codes_OI=cell.codes(), grid=start.grid)


class _Cell:
    """The box between the neighbours of a weight; ``x_OI`` is the place in it."""

    def __init__(self, W_OI: Tensor, grid: AffineGrid) -> None:
        self._grid, self._shape, self.rho = grid, W_OI.shape, 1.0
        scale, zero_point = grid.scale.unsqueeze(-1), grid.zero_point.unsqueeze(-1)
        top = grid.levels - 1
        place = W_OI.view(*grid.scale.shape, -1) / scale + zero_point
        low = place.floor().clamp(0, top)
        self._low_OI = low.view(self._shape)
        width = ((low + 1).clamp(max=top) - low) * ((place > 0) & (place < top))
        self.gap_OI = (width * scale).view(self._shape)
        self._down_OI = ((low - zero_point) * scale).view(self._shape)
        inside = width.view(self._shape) > 0
        y_OI = torch.where(inside, (place - low).view(self._shape).clamp(0, 1), 0.5)
        self.c_OI = 2 * y_OI - 1
        self.x_OI = y_OI.clone().requires_grad_()

    def weight(self) -> Tensor:
        """W_x [O, I]; the gradient that the loss sends to x is clamped."""
        with torch.no_grad():
            self.x_OI.clamp_(0, 1)
        x_OI = self.x_OI * 1.0
        if x_OI.requires_grad:
            x_OI.register_hook(lambda gradient: (self.rho * gradient).clamp(-CLAMP, CLAMP))
        return self._down_OI + x_OI * self.gap_OI

    def rounded(self) -> Tensor:
        """The corner next to x."""
        return self._down_OI + self._up() * self.gap_OI

    @torch.no_grad()
    def codes(self) -> Tensor:
        """uint8 [O, I]"""
        return (self._low_OI + self._up() * (self.gap_OI > 0)).to(torch.uint8)

    def _up(self) -> Tensor:
        return (self.x_OI > 0.5).float()


METHOD = DiscQuant
