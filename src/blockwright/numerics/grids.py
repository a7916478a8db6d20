"""Grids of representable values of an [O, I] weight, G groups of inputs per row.

AffineGrid     W_hat = scale (code - zero_point), zero_point an integer
OffsetGrid     W_hat = scale (code - center) + offset, offset any number
CodebookGrid   W_hat = scale values[code]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.codebooks import Codebook
from blockwright.numerics.ranges import quantize
from blockwright.types import Grid


@dataclass(frozen=True)
class AffineGrid:
    """Uniform grid of an [O, I] weight, G groups of inputs per row.  Implements ``Grid``."""

    scale: Tensor
    """fp32 [O, G], already rounded to its stored dtype"""
    zero_point: Tensor
    """fp32 [O, G], integers"""
    levels: int
    """Number of codes, 2^bits."""
    group_size: int
    """Inputs per group; 0 = the whole row (G = 1)."""

    def encode(self, W_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Codes uint8 [O, J] of the nearest representable values, ties to even."""
        W, (scale, zero_point) = _align(
            W_OJ.float(), columns, self.group_size, self.scale, self.zero_point
        )
        return quantize(W, scale, zero_point, self.levels).to(torch.uint8).view(W_OJ.shape)

    def decode(self, codes_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Values fp32 [O, J] of codes."""
        codes, (scale, zero_point) = _align(
            codes_OJ.float(), columns, self.group_size, self.scale, self.zero_point
        )
        return codes.sub(zero_point).mul_(scale).view(codes_OJ.shape)

    def replaced(self, columns: slice, other: Grid) -> AffineGrid:
        """This grid with the groups of ``columns`` taken from ``other``, a grid of them alone.

        Raises ``ValueError`` when ``columns`` are not whole groups of an alike grid.
        """
        if not isinstance(other, AffineGrid) or other.levels != self.levels:
            raise ValueError(
                "only the groups of an affine grid of as many levels can be taken over"
            )
        groups = _whole_groups(columns, self.group_size, self.scale.shape[1])
        scale = _with_groups(self.scale, groups, other.scale)
        zero_point = _with_groups(self.zero_point, groups, other.zero_point)
        return AffineGrid(scale, zero_point, self.levels, self.group_size)


@dataclass(frozen=True)
class OffsetGrid:
    """Uniform grid that may begin at any number.  Implements ``Grid``."""

    scale: Tensor
    """fp32 [O, G], already rounded to its stored dtype"""
    offset: Tensor
    """fp32 [O, G], already rounded to its stored dtype: the value of the code ``center``"""
    levels: int
    """Number of codes, 2^bits."""
    group_size: int
    """Inputs per group; 0 = the whole row (G = 1)."""

    @property
    def center(self) -> int:
        """The code of the offset."""
        return self.levels // 2

    def encode(self, W_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Codes uint8 [O, J] of the nearest representable values, ties to even."""
        W, (scale, offset) = _align(W_OJ.float(), columns, self.group_size, self.scale, self.offset)
        codes = quantize(torch.sub(W, offset), scale, self.center, self.levels)
        return codes.to(torch.uint8).view(W_OJ.shape)

    def decode(self, codes_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Values fp32 [O, J] of codes."""
        codes, (scale, offset) = _align(
            codes_OJ.float(), columns, self.group_size, self.scale, self.offset
        )
        return codes.sub(self.center).mul_(scale).add_(offset).view(codes_OJ.shape)

    def replaced(self, columns: slice, other: Grid) -> OffsetGrid:
        """As ``AffineGrid.replaced``."""
        if not isinstance(other, OffsetGrid) or other.levels != self.levels:
            raise ValueError(
                "only the groups of an offset grid of as many levels can be taken over"
            )
        groups = _whole_groups(columns, self.group_size, self.scale.shape[1])
        scale = _with_groups(self.scale, groups, other.scale)
        offset = _with_groups(self.offset, groups, other.offset)
        return OffsetGrid(scale, offset, self.levels, self.group_size)


@dataclass(frozen=True)
class CodebookGrid:
    """The values of a codebook, scaled.  Implements ``Grid``."""

    scale: Tensor
    """fp32 [O, G], already rounded as it is stored"""
    codebook: Codebook
    group_size: int
    """Inputs per group; 0 = the whole row (G = 1)."""

    def encode(self, W_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Codes uint8 [O, J] of the nearest representable values, ties to the lower one."""
        W, (scale,) = _align(W_OJ.float(), columns, self.group_size, self.scale)
        return self.codebook.encode(W / scale).view(W_OJ.shape)

    def decode(self, codes_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Values fp32 [O, J] of codes."""
        codes, (scale,) = _align(codes_OJ, columns, self.group_size, self.scale)
        return self.codebook.decode(codes).mul_(scale).view(codes_OJ.shape)

    def replaced(self, columns: slice, other: Grid) -> CodebookGrid:
        """As ``AffineGrid.replaced``."""
        if not isinstance(other, CodebookGrid) or other.codebook != self.codebook:
            raise ValueError("only the groups of a grid of the same codebook can be taken over")
        groups = _whole_groups(columns, self.group_size, self.scale.shape[1])
        scale = _with_groups(self.scale, groups, other.scale)
        return CodebookGrid(scale, self.codebook, self.group_size)


def _whole_groups(columns: slice, group_size: int, groups: int) -> slice:
    """The groups of a slice of columns; ``ValueError`` unless they are whole."""
    if group_size == 0:
        return slice(0, 1)
    start, stop, _ = columns.indices(groups * group_size)
    if start % group_size or stop % group_size:
        raise ValueError(f"columns {start}:{stop} are not whole groups of {group_size}")
    return slice(start // group_size, stop // group_size)


def _with_groups(values_OG: Tensor, groups: slice, others: Tensor) -> Tensor:
    """A copy with some groups from another tensor."""
    if others.shape[1] != groups.stop - groups.start:
        raise ValueError(
            f"{others.shape[1]} groups do not fill groups {groups.start} to {groups.stop}"
        )
    values_OG = values_OG.clone()
    values_OG[:, groups] = others
    return values_OG


def _align(
    values: Tensor, columns: slice | Tensor, group_size: int, *of_groups: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Values of columns and what groups share [O, G], in shapes that broadcast; no copies where
    groups allow.
    """
    if group_size == 0:
        return values, list(of_groups)
    if isinstance(columns, slice):
        start, stop, step = columns.indices(of_groups[0].shape[1] * group_size)
        first, last = start // group_size, -(-stop // group_size)
        if last - first == 1:
            return values, [each[:, first:last] for each in of_groups]
        if step == 1 and start % group_size == 0 and stop % group_size == 0:
            grouped = values.reshape(values.shape[0], last - first, group_size)
            return grouped, [each[:, first:last, None] for each in of_groups]
        columns = torch.arange(start, stop, step, device=values.device)
    index = torch.div(columns, group_size, rounding_mode="floor")
    return values, [each[:, index] for each in of_groups]
