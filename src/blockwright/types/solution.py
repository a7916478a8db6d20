"""Solutions: what a method found for one weight; ``pack`` of the format makes the stored module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from blockwright.types.composite import KroneckerSplit
    from blockwright.types.format import Grid


class Solution(ABC):
    """A solution is of one kind of format; it says which weight it stands for."""

    @abstractmethod
    def weight(self) -> Tensor:
        """W_hat [O, I], fp32: bit for bit what the packed module dequantizes to."""


@dataclass(frozen=True, kw_only=True)
class DenseSolution(Solution):
    """Every element in a floating-point type."""

    values_OI: Tensor  # noqa: N815 - shape suffix
    """[O, I] in the stored dtype"""

    def weight(self) -> Tensor:
        return self.values_OI.float()


@dataclass(frozen=True, kw_only=True)
class GridSolution(Solution):
    """Codes on a grid, for a ``GridFormat``."""

    codes_OI: Tensor  # noqa: N815 - shape suffix
    """uint8 [O, I]"""
    grid: Grid

    def weight(self) -> Tensor:
        return self.grid.decode(self.codes_OI, slice(None))


@dataclass(frozen=True, kw_only=True)
class FactoredSolution(Solution):
    """A product of two matrices, each a solution for the format of the values."""

    left: Solution
    """[O, R]"""
    right: Solution
    """[R, I]"""

    def weight(self) -> Tensor:
        return self.left.weight() @ self.right.weight()


@dataclass(frozen=True, kw_only=True)
class InterpolatedSolution(Solution):
    """Some rows, and how the others mix them."""

    place_O: Tensor  # noqa: N815 - shape suffix
    """int64 [O]: where each output stands among the kept ones, then the mixed ones."""
    kept: Solution
    """[R, I]"""
    mixing: Solution
    """[O - R, R]"""

    def weight(self) -> Tensor:
        kept_RI = self.kept.weight()
        both_OI = kept_RI.new_empty((len(self.place_O), kept_RI.shape[1]))
        both_OI[: len(kept_RI)] = kept_RI
        both_OI[len(kept_RI) :] = self.mixing.weight() @ kept_RI
        return both_OI.index_select(0, self.place_O)


@dataclass(frozen=True, kw_only=True)
class KroneckerSolution(Solution):
    """A sum of Kronecker products."""

    split: KroneckerSplit
    left: Solution
    """[rows, terms columns]"""
    right: Solution
    """[terms block_rows, block_columns]"""

    def weight(self) -> Tensor:
        return self.split.weight(self.left.weight(), self.right.weight())


@dataclass(frozen=True, kw_only=True)
class PermutedSolution(Solution):
    """An order of the inputs, and the values in that order."""

    order_I: Tensor  # noqa: N815 - shape suffix
    """int64 [I]: the input that stands at each place."""
    values: Solution
    """[O, I]: W[:, order]."""

    def weight(self) -> Tensor:
        values = self.values.weight()
        return values.new_empty(values.shape).index_copy_(1, self.order_I, values)


@dataclass(frozen=True, kw_only=True)
class MaskedSolution(Solution):
    """Kept positions, as many in every row, and their values."""

    mask_OI: Tensor  # noqa: N815 - shape suffix
    """bool [O, I], True = kept"""
    values: Solution
    """[O, K]: the kept values of every row, from left to right."""

    def weight(self) -> Tensor:
        kept_OK = self.values.weight()
        return kept_OK.new_zeros(self.mask_OI.shape).masked_scatter_(self.mask_OI, kept_OK)


@dataclass(frozen=True, kw_only=True)
class OutlierSolution(Solution):
    """Whole input columns in a floating-point type, and the others on a grid."""

    columns_K: Tensor  # noqa: N815 - shape suffix
    """int64 [K], rising"""
    outliers: DenseSolution
    """[O, K]"""
    rest: GridSolution
    """[O, I], 0 in the kept columns"""

    def weight(self) -> Tensor:
        return self.rest.weight().index_copy_(1, self.columns_K, self.outliers.weight())


@dataclass(frozen=True, kw_only=True)
class MixedRowsSolution(Solution):
    """Rows on two grids."""

    is_wide_O: Tensor  # noqa: N815 - shape suffix
    """bool [O]"""
    narrow: GridSolution
    """[O - K, I]: the other rows, in order"""
    wide: GridSolution
    """[K, I]: the wide rows, in order"""

    def weight(self) -> Tensor:
        wide_KI = self.wide.weight()
        W_OI = wide_KI.new_empty((len(self.is_wide_O), wide_KI.shape[1]))
        W_OI[self.is_wide_O] = wide_KI
        W_OI[~self.is_wide_O] = self.narrow.weight()
        return W_OI


@dataclass(frozen=True, kw_only=True)
class SumSolution(Solution):
    """Codes on a grid, and a product that is added."""

    base: GridSolution
    """[O, I]"""
    plus: FactoredSolution
    """[O, I]"""

    def weight(self) -> Tensor:
        return self.base.weight() + self.plus.weight()
