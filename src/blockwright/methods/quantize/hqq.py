"""Hqq: move every group's levels until the rounding errors are small in a norm that forgives a few.

Paper:   Badri, Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
Idea:    A zero point need not be an integer.  Starting from the range of the group, errors are
         split into a part E that is let go (the outliers, by a norm with p < 1) and the rest, whose
         mean the levels are shifted by; then codes are rounded again.  No data, no gradients.  Much
         of its gain over rounding on an integer grid is the real-valued start itself.

Equations -> code
    Eq. (3)   min_z,E |E|_p + beta/2 |E - (W - Q(W))|^2     half_quadratic
    sp_1      E = shrink_lp(W - W_hat)                      let_go
    sp_2      z = mean(c - (W - E) / s)                     here m = mean(W - E - s (c - center)),
              for W_hat = s (c - center) + m, so m = (center - z) s
Shapes:  O out features, I in features, G groups of J inputs per row.
Units:   error = mean |W_hat - W| of the whole weight; what is judged elsewhere is output error.
Needs:   nothing; INPUT_GRAM (its diagonal) with search=gram, for the ranges.   Fills: affine.
Cost:    time O(iterations O I), memory four copies of W.
Differs from the paper:
    1. The best m of every group is kept, by its own mean |W_hat - W|; the authors' code stops all
       groups when the mean of all no longer falls, and returns the last.
    2. Errors are measured in steps of the grid (`relative`), so that the result scales with the
       weight.  In the authors' units an error of 0.001 lies below its own threshold
       |error|^(p-1) / beta = 0.8, E is 0 and the norm decides nothing.
    3. Ranges are clipped by squared error first (`search`; the authors take them from minimum to
       maximum): far better below 4 bits, and at 8 bits the same.
Raises:  NumericalError when W is not finite.
Checked: error against rounding to nearest on the same grid and on the integer grid, never worse
         than its start, scales with the weight: tests/claims/test_hqq.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import (
    Search,
    check_finite,
    check_search,
    grid_fitter,
    input_energy,
)
from blockwright.numerics.grids import OffsetGrid
from blockwright.numerics.ranges import SCALE_DTYPE, quantize
from blockwright.types import (
    Format,
    GridSolution,
    LinearMethod,
    OffsetFormat,
    Statistic,
    Statistics,
)

GROWTH = 1.01
"""beta grows by this in every iteration (authors' code)."""
CHUNK_ELEMENTS = 1 << 20
"""Weights in flight: bounds the working memory to about 20 MB."""


@dataclass(frozen=True, kw_only=True)
class Hqq(LinearMethod):
    """Half-quadratic quantization."""

    paper: ClassVar[str] = "Badri and Shaji, HQQ, 2023"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = OffsetFormat  # type: ignore[type-abstract]

    iterations: int = 20
    p: float = 0.7
    beta: float = 10.0
    relative: bool = True
    search: Search = "mse"

    def __post_init__(self) -> None:
        check_search("hqq", self.search)
        if not (0 < self.p <= 1 and self.beta > 0 and self.iterations >= 1):
            raise CandidateError(
                f"options hqq@p, beta, iterations: got {self.p}, {self.beta}, {self.iterations};"
                " needs p above 0 up to 1, beta above 0, at least one iteration"
            )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM}) if self.search == "gram" else frozenset()

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> GridSolution:
        check_finite(W_OI)
        if not isinstance(format, OffsetFormat):
            raise CandidateError(f"hqq cannot fill {format.name}: its zero points are real numbers")
        h_I = input_energy(statistics) if self.search == "gram" else None
        grid = grid_fitter(format, self.search, h_I)(W_OI, slice(None))
        if not isinstance(grid, OffsetGrid):
            raise TypeError(f"{format.name} fits a {type(grid).__name__}, not an OffsetGrid")
        rows = max(1, CHUNK_ELEMENTS // W_OI.shape[1])
        offsets = [
            self.half_quadratic(W.view(len(W), scale.shape[1], -1), scale, offset, grid)
            for W, scale, offset in zip(
                *(each.split(rows) for each in (W_OI, grid.scale, grid.offset)), strict=True
            )
        ]
        found = OffsetGrid(grid.scale, torch.cat(offsets), grid.levels, grid.group_size)
        return GridSolution(codes_OI=found.encode(W_OI, slice(None)), grid=found)

    def half_quadratic(
        self, W_OGJ: Tensor, scale: Tensor, offset: Tensor, grid: OffsetGrid
    ) -> Tensor:
        """The best offset m [O, G] of those that the iterations visit, rounded as stored."""
        s, m, beta = scale.unsqueeze(-1), offset, self.beta
        best, least = m, torch.full_like(m, torch.inf)
        for _ in range(self.iterations + 1):
            steps = quantize(W_OGJ - m.unsqueeze(-1), s, grid.center, grid.levels)
            steps.sub_(grid.center).mul_(s)  # s (c - center)
            R = W_OGJ - steps - m.unsqueeze(-1)
            error = R.abs().mean(-1)
            best, least = torch.where(error < least, m, best), torch.minimum(error, least)
            E = let_go(R / s, self.p, beta) * s if self.relative else let_go(R, self.p, beta)
            m = (W_OGJ - E - steps).mean(-1).to(SCALE_DTYPE).float()
            beta *= GROWTH
        return best


def let_go(R: Tensor, p: float, beta: float) -> Tensor:
    """E, the generalised soft threshold of the residual: sign(R) relu(|R| - |R|^(p-1) / beta)."""
    size = R.abs()
    kept = torch.where(size > 0, size - size.pow(p - 1) / beta, 0.0)
    return R.sign() * kept.relu_()


METHOD = Hqq
