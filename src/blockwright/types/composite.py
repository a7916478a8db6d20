"""Formats made of parts, whose real numbers are stored in a format of their own.

``rank-p50+int8``: two factors, both stored as ``int8``.  ``sparse2of4+int4-g64``: kept values
stored as ``int4-g64``, beside their positions.  Without ``+`` the parts are stored as bfloat16.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from blockwright.errors import CandidateError
from blockwright.types.format import Format, GridFormat, PackedFormat, ValueFormat

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = "bf16"
"""Values that need no naming."""


class CompositeFormat(PackedFormat):
    """A format of named parts; implementations are frozen dataclasses with a field ``values``."""

    values: ValueFormat

    @property
    @abstractmethod
    def structure(self) -> str:
        """The name without its values, e.g. ``rank-p50``."""

    @abstractmethod
    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        """Part -> (rows, columns), for a weight of ``(out, in)``."""

    @abstractmethod
    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        """Raise ``FormatError`` when the structure cannot stand at ``(out, in)``."""

    def position_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of what is stored beside the parts: masks and indices."""
        return 0

    @property
    def name(self) -> str:
        return self.structure + ("" if self.values.name == PLAIN else f"+{self.values.name}")

    def with_values(self, values: Format) -> Self:
        """The same structure with its values in another format; ``CandidateError`` if it cannot."""
        if not isinstance(values, ValueFormat):
            raise CandidateError(
                f"{self.structure}+{values.name}: {values.name} cannot store values;"
                " after '+' goes a format that stores each weight by itself, e.g. int8 or int4-g64"
            )
        return replace(self, values=values)  # type: ignore[type-var]

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        self.check_structure(shape, where)
        for part, part_shape in self.part_shapes(shape).items():
            self.values.check_shape(part_shape, f"{where}, {part} of {self.structure}")

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        parts = self.part_shapes(shape).values()
        return self.position_bytes(shape) + sum(map(self.values.stored_bytes, parts))


class RankedFormat(CompositeFormat):
    """A weight of low rank, in one form or another."""

    @abstractmethod
    def rank(self, shape: tuple[int, int]) -> int:
        """R for a weight of ``(out, in)``."""


class FactoredFormat(RankedFormat):
    """A product of two thin matrices, left [O, R] and right [R, I]."""

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        out_features, in_features = shape
        rank = self.rank(shape)
        return {"left": (out_features, rank), "right": (rank, in_features)}


class InterpolatedFormat(RankedFormat):
    """R rows of the weight, kept [R, I], and how the others mix them, mixing [O - R, R]."""

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        out_features, in_features = shape
        rank = self.rank(shape)
        return {"kept": (rank, in_features), "mixing": (out_features - rank, rank)}


class ThresholdFormat(CompositeFormat):
    """Of low rank where that is smaller than the weight itself, which is stored whole otherwise;
    the rank depends on the weight.
    """

    @property
    @abstractmethod
    def threshold(self) -> float:
        """What a normalized singular value needs to be counted, above 0 and below 1."""

    @abstractmethod
    def factored(self, shape: tuple[int, int], counted: int) -> FactoredFormat | None:
        """The format that holds ``counted`` ranks of a weight of ``(out, in)``; None where the
        whole weight is no larger.
        """

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {"whole": shape}


@dataclass(frozen=True)
class KroneckerSplit:
    """A weight [O, I] as blocks: O = rows block_rows, I = columns block_columns, and the number of
    Kronecker products that are added.
    """

    rows: int
    columns: int
    block_rows: int
    block_columns: int
    terms: int

    @property
    def part_shapes(self) -> dict[str, tuple[int, int]]:
        """left [rows, columns terms], right [block_rows terms, block_columns]."""
        return {
            "left": (self.rows, self.columns * self.terms),
            "right": (self.block_rows * self.terms, self.block_columns),
        }

    @property
    def factored_products(self) -> int:
        """Multiplications per token without ever forming the weight."""
        of_one = self.block_rows * self.columns * (self.block_columns + self.rows)
        return self.terms * of_one

    def weight(self, left: Tensor, right: Tensor) -> Tensor:
        """sum_r A_r (x) B_r [O, I]."""
        A = left.reshape(self.rows * self.columns, self.terms)
        return self.from_blocks(A @ self.right_factors(right))

    def right_factors(self, right: Tensor) -> Tensor:
        """B [terms, block_rows block_columns]: one row for every product."""
        B = right.reshape(self.block_rows, self.terms, self.block_columns).transpose(0, 1)
        return B.reshape(self.terms, -1)

    def to_parts(self, A_PR: Tensor, B_RQ: Tensor) -> tuple[Tensor, Tensor]:
        """left and right of factors of the rearranged weight."""
        B = B_RQ.reshape(self.terms, self.block_rows, self.block_columns).transpose(0, 1)
        return (
            A_PR.reshape(self.part_shapes["left"]),
            B.reshape(self.part_shapes["right"]).contiguous(),
        )

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """Van Loan's rearrangement undone: [rows columns, block_rows block_columns] -> [O, I]."""
        shape = (self.rows, self.columns, self.block_rows, self.block_columns)
        in_place = blocks.reshape(shape).transpose(1, 2)
        return in_place.reshape(self.rows * self.block_rows, self.columns * self.block_columns)

    def to_blocks(self, W_OI: Tensor) -> Tensor:
        """Van Loan's rearrangement: every block of the weight becomes a row."""
        shape = (self.rows, self.block_rows, self.columns, self.block_columns)
        blocks = W_OI.reshape(shape).transpose(1, 2)
        return blocks.reshape(self.rows * self.columns, self.block_rows * self.block_columns)


class KroneckerFormat(CompositeFormat):
    """A sum of Kronecker products, left and right as ``KroneckerSplit`` lays them out."""

    @abstractmethod
    def split(self, shape: tuple[int, int]) -> KroneckerSplit:
        """How a weight of ``(out, in)`` is cut, and how many products there are."""

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return self.split(shape).part_shapes


class PermutedFormat(CompositeFormat):
    """All values, their inputs in another order."""

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {"values": shape}


class MaskedFormat(CompositeFormat):
    """Zeros that are not stored.  Every row keeps equally many values."""

    @abstractmethod
    def kept(self, in_features: int) -> int:
        """Values kept in each row of so many inputs, K.

        For methods that go through the inputs in tiles: the first J of them keep ``kept(J)``.
        """

    @abstractmethod
    def best_mask(self, score_OJ: Tensor, kept: int | None = None) -> Tensor:
        """The mask (bool [O, J], True = kept) that can be stored and zeroes least.

        Zeroing costs the square of the score, summed over what is zeroed.  J is any number of whole
        pattern groups; without a pattern the whole row, or columns that keep ``kept``.
        """

    @abstractmethod
    def packed_positions(self, mask_OI: Tensor) -> Tensor:
        """The mask as it is stored; ``ValueError`` where it breaks the format's pattern."""

    @property
    @abstractmethod
    def pattern_size(self) -> int:
        """Consecutive inputs whose kept number is fixed (M of N:M); 0 = the whole row."""

    @property
    def unit(self) -> tuple[int, int]:
        """(outputs, inputs), consecutive, that are kept or zeroed as one; at the last outputs there
        may be fewer.  Units that share outputs are a panel.
        """
        return 1, 1

    def part_shapes(self, shape: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
        return {"values": (shape[0], self.kept(shape[1]))}


class WrappedFormat(PackedFormat):
    """A sparse core between two block-diagonal wrappers; implementations are frozen dataclasses
    with these fields.
    """

    core: MaskedFormat
    """Of the core, [O, I]: 2 of 4."""
    block: int
    """Rows of a wrapper's block, b: it divides O and I."""


class SumFormat(PackedFormat):
    """A format of whole weights, and a product of two thin matrices that is added to it;
    implementations are frozen dataclasses with these fields.
    """

    base: PackedFormat
    """Of the full-size part, [O, I]."""
    plus: FactoredFormat
    """Of the product."""


class GridSumFormat(SumFormat):
    """A weight on a grid, and a product."""

    base: GridFormat


class MaskedSumFormat(SumFormat):
    """A weight with zeros, and a product."""

    base: MaskedFormat
