"""Rounding one column at a time, for methods that visit a weight column by column.

A sweep over thousands of columns spends its time on the overhead of small operations.  On an affine
grid four of them, in place, round a column, because with integers

    clip(round(w/s) + z, 0, Q) - z = clip(round(w/s), -z, Q - z)

``reference`` says what is computed, for any grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid
from blockwright.types import Grid

ColumnRounder = Callable[[int, Tensor], Tensor]
"""(place in the order, weights of that column [O]) -> nearest representable values [O].

The result is valid until the next call.
"""


def column_rounder(grid: Grid, order: Tensor) -> ColumnRounder:
    """Rounds column ``order[j]`` of a grid when called with ``j``; ``order`` is int64."""
    return _affine(grid, order) if isinstance(grid, AffineGrid) else reference(grid, order)


def reference(grid: Grid, order: Tensor) -> ColumnRounder:
    """The same by the grid's own encode and decode."""
    columns = [slice(i, i + 1) for i in order.tolist()]

    def round_column(j: int, w_O: Tensor) -> Tensor:
        return grid.decode(grid.encode(w_O[:, None], columns[j]), columns[j])[:, 0]

    return round_column


def _affine(grid: AffineGrid, order: Tensor) -> ColumnRounder:
    zero_GO = grid.zero_point.T.contiguous()
    scales = grid.scale.T.contiguous().unbind(0)
    lowest = zero_GO.neg().unbind(0)
    highest = (grid.levels - 1 - zero_GO).unbind(0)
    size = grid.group_size
    groups = [i // size if size else 0 for i in order.tolist()]
    q_O = torch.empty_like(scales[0])

    def round_column(j: int, w_O: Tensor) -> Tensor:
        group = groups[j]
        torch.div(w_O, scales[group], out=q_O).round_()
        return torch.clamp(q_O, lowest[group], highest[group], out=q_O).mul_(scales[group])

    return round_column
