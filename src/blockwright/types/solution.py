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
    errors_O: Tensor | None = None  # noqa: N815 - shape suffix
    """fp32 [O], squared error of every output, mean over tokens, where the method knows it."""

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
class WrappedSolution(Solution):
    """A sparse core between two block-diagonal matrices, given by their blocks."""

    left_JBB: Tensor  # noqa: N815 - shape suffix
    """bfloat16 [O / b, b, b]"""
    core: MaskedSolution
    """[O, I]"""
    right_KBB: Tensor  # noqa: N815 - shape suffix
    """bfloat16 [I / b, b, b]"""

    def weight(self) -> Tensor:
        core_OI = self.core.weight()
        blocks, size, _ = self.left_JBB.shape
        inner_OI = (self.left_JBB.float() @ core_OI.view(blocks, size, -1)).view(core_OI.shape)
        by_block = inner_OI.reshape(len(core_OI), -1, size).transpose(0, 1)
        return (by_block @ self.right_KBB.float()).transpose(0, 1).reshape(core_OI.shape)


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
class SalientSolution(Solution):
    """Some whole input columns on one grid, the others on a coarser one, each times a factor."""

    columns_K: Tensor  # noqa: N815 - shape suffix
    """int64 [K], rising: the columns on the finer grid"""
    salient: GridSolution
    """[O, K]"""
    rest: GridSolution
    """[O, J]: the other columns, in order"""
    factor_J: Tensor  # noqa: N815 - shape suffix
    """fp32 [J], already rounded to its stored dtype"""

    def weight(self) -> Tensor:
        salient_OK = self.salient.weight()
        inputs = len(self.columns_K) + len(self.factor_J)
        is_salient_I = self.columns_K.new_zeros(inputs).index_fill_(0, self.columns_K, 1).bool()
        W_OI = salient_OK.new_empty((len(salient_OK), inputs))
        W_OI[:, is_salient_I] = salient_OK
        W_OI[:, ~is_salient_I] = self.rest.weight() * self.factor_J
        return W_OI


@dataclass(frozen=True, kw_only=True)
class VectorSolution(Solution):
    """Codes that each stand for the next D inputs of a row, a codebook, and scales of groups."""

    codes_OV: Tensor  # noqa: N815 - shape suffix
    """uint8 [O, V], V = I / D"""
    codebook_KD: Tensor  # noqa: N815 - shape suffix
    """int8 [K, D], from -127 to 127"""
    scale_OG: Tensor  # noqa: N815 - shape suffix
    """fp32 [O, G], already rounded to its stored dtype; 0 for a group of zeros"""

    def weight(self) -> Tensor:
        entries = self.codebook_KD.float()[self.codes_OV.long()]
        grouped = entries.view(*self.scale_OG.shape, -1)
        return (grouped * self.scale_OG.unsqueeze(-1)).view(len(grouped), -1)


@dataclass(frozen=True, kw_only=True)
class DyadicSolution(Solution):
    """Integer rows whose products are rescaled by multiplier / 2^shift, from inputs in units of
    ``input_scale`` to outputs in units of ``output_scale``.
    """

    codes_OI: Tensor  # noqa: N815 - shape suffix
    """int8 [O, I]"""
    multiplier_O: Tensor  # noqa: N815 - shape suffix
    """int32 [O], below 2^31"""
    shift_O: Tensor  # noqa: N815 - shape suffix
    """int8 [O], 0 to 62"""
    scales: Tensor
    """fp32 [2]: of the inputs, of the outputs"""

    def row_scale(self) -> Tensor:
        """fp32 [O, 1]: what a code stands for."""
        input_scale, output_scale = self.scales.double()
        dyadic_O = self.multiplier_O.double() * 2.0 ** -self.shift_O.double()
        scale_O: Tensor = dyadic_O * (output_scale / input_scale)
        return scale_O.float().unsqueeze(1)

    def weight(self) -> Tensor:
        return self.codes_OI.float() * self.row_scale()


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
    """Codes on a grid or kept values, and a product that is added."""

    base: GridSolution | MaskedSolution
    """[O, I]"""
    plus: FactoredSolution
    """[O, I]"""

    def weight(self) -> Tensor:
        return self.base.weight() + self.plus.weight()
