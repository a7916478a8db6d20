"""Rounding one column at a time, for methods that visit a weight column by column.

A sweep over thousands of columns spends its time on the overhead of small operations.  On uniform
grids four to six of them, in place, round a column, because with integers

    clip(round(w/s) + z, 0, Q) - z = clip(round(w/s), -z, Q - z)

and on a codebook four: divide, find the place between midpoints, look the value up, multiply.
``reference`` says what is computed, for any grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid, CodebookGrid, OffsetGrid
from blockwright.types import Grid

ColumnRounder = Callable[[int, Tensor], Tensor]
"""(place in the order, weights of that column [O]) -> nearest representable values [O].

The result is valid until the next call.
"""


def column_rounder(grid: Grid, order: Tensor) -> ColumnRounder:
    """Rounds column ``order[j]`` of a grid when called with ``j``; ``order`` is int64."""
    if isinstance(grid, AffineGrid):
        return _affine(grid, order)
    if isinstance(grid, OffsetGrid):
        return _offset(grid, order)
    return _codebook(grid, order) if isinstance(grid, CodebookGrid) else reference(grid, order)


def reference(grid: Grid, order: Tensor) -> ColumnRounder:
    """The same by the grid's own encode and decode."""
    columns = [slice(i, i + 1) for i in order.tolist()]

    def round_column(j: int, w_O: Tensor) -> Tensor:
        return grid.decode(grid.encode(w_O[:, None], columns[j]), columns[j])[:, 0]

    return round_column


def either(first: ColumnRounder, second: ColumnRounder, is_second: Sequence[bool]) -> ColumnRounder:
    """Two rounders of one order; ``is_second`` says at each place which of them rounds."""
    chosen = [second if each else first for each in is_second]
    return lambda j, w_O: chosen[j](j, w_O)


def _affine(grid: AffineGrid, order: Tensor) -> ColumnRounder:
    zero_GO = grid.zero_point.T.contiguous()
    scales = _by_group(grid.scale)
    lowest = zero_GO.neg().unbind(0)
    highest = (grid.levels - 1 - zero_GO).unbind(0)
    groups = _groups(grid.group_size, order)
    q_O = torch.empty_like(scales[0])

    def round_column(j: int, w_O: Tensor) -> Tensor:
        group = groups[j]
        torch.div(w_O, scales[group], out=q_O).round_()
        return torch.clamp(q_O, lowest[group], highest[group], out=q_O).mul_(scales[group])

    return round_column


def _offset(grid: OffsetGrid, order: Tensor) -> ColumnRounder:
    scales, offsets = _by_group(grid.scale), _by_group(grid.offset)
    lowest, highest = -grid.center, grid.levels - 1 - grid.center
    groups = _groups(grid.group_size, order)
    q_O = torch.empty_like(scales[0])

    def round_column(j: int, w_O: Tensor) -> Tensor:
        scale_O, offset_O = scales[groups[j]], offsets[groups[j]]
        torch.sub(w_O, offset_O, out=q_O).div_(scale_O).round_()
        return q_O.clamp_(lowest, highest).mul_(scale_O).add_(offset_O)

    return round_column


def _codebook(grid: CodebookGrid, order: Tensor) -> ColumnRounder:
    scales = _by_group(grid.scale)
    midpoints, rising = grid.codebook.rising(grid.scale.device)
    groups = _groups(grid.group_size, order)
    q_O = torch.empty_like(scales[0])

    def round_column(j: int, w_O: Tensor) -> Tensor:
        scale_O = scales[groups[j]]
        torch.div(w_O, scale_O, out=q_O)
        return rising[torch.bucketize(q_O, midpoints, out_int32=True)].mul_(scale_O)

    return round_column


def _by_group(values_OG: Tensor) -> tuple[Tensor, ...]:
    return values_OG.T.contiguous().unbind(0)


def _groups(size: int, order: Tensor) -> list[int]:
    """The group of every column in the order."""
    return [i // size if size else 0 for i in order.tolist()]
