"""Grids of representable values: W_hat = scale (code - zero_point), one pair per row and group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        W, scale, zero_point = self._aligned(W_OJ.float(), columns)
        return quantize(W, scale, zero_point, self.levels).to(torch.uint8).view(W_OJ.shape)

    def decode(self, codes_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Values fp32 [O, J] of codes."""
        codes, scale, zero_point = self._aligned(codes_OJ.float(), columns)
        return codes.sub(zero_point).mul_(scale).view(codes_OJ.shape)

    def replaced(self, columns: slice, other: Grid) -> AffineGrid:
        """This grid with the groups of ``columns`` taken from ``other``, a grid of them alone.

        Raises ``ValueError`` when ``columns`` are not whole groups of an alike grid.
        """
        if not isinstance(other, AffineGrid) or other.levels != self.levels:
            raise ValueError(
                "only the groups of an affine grid of as many levels can be taken over"
            )
        start, stop = self._groups(columns)
        if other.scale.shape[1] != stop - start:
            raise ValueError(f"{other.scale.shape[1]} groups do not fill groups {start} to {stop}")
        scale, zero_point = self.scale.clone(), self.zero_point.clone()
        scale[:, start:stop] = other.scale
        zero_point[:, start:stop] = other.zero_point
        return AffineGrid(scale, zero_point, self.levels, self.group_size)

    def _groups(self, columns: slice) -> tuple[int, int]:
        """First and last (excluded) group of a slice of whole groups."""
        if self.group_size == 0:
            return 0, 1
        start, stop, _ = columns.indices(self.scale.shape[1] * self.group_size)
        if start % self.group_size or stop % self.group_size:
            raise ValueError(f"columns {start}:{stop} are not whole groups of {self.group_size}")
        return start // self.group_size, stop // self.group_size

    def _aligned(self, values: Tensor, columns: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, scale and zero point in shapes that broadcast; no copies where groups allow."""
        if self.group_size == 0:
            return values, self.scale, self.zero_point
        if isinstance(columns, slice):
            start, stop, step = columns.indices(self.scale.shape[1] * self.group_size)
            first, last = start // self.group_size, -(-stop // self.group_size)
            if last - first == 1:
                return values, self.scale[:, first:last], self.zero_point[:, first:last]
            if step == 1 and start % self.group_size == 0 and stop % self.group_size == 0:
                groups = slice(first, last)
                grouped = values.reshape(values.shape[0], last - first, self.group_size)
                return grouped, self.scale[:, groups, None], self.zero_point[:, groups, None]
            columns = torch.arange(start, stop, step, device=values.device)
        index = torch.div(columns, self.group_size, rounding_mode="floor")
        return values, self.scale[:, index], self.zero_point[:, index]
