"""Narrower parts: the format and the method of an FFN with fewer channels, or of attention with
fewer heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockwright.errors import NumericalError
from blockwright.types.format import Format, PackedFormat

if TYPE_CHECKING:
    from torch import Tensor

    from blockwright.types.part import PartRole
    from blockwright.types.statistics import Statistic, Statistics


class WidthFormat(Format):
    """A part with fewer channels, its matrices smaller: plain, or each stored in ``values``."""

    values: PackedFormat | None
    role: ClassVar[PartRole]
    """The kind of part that it makes narrower."""

    @abstractmethod
    def kept(self, channels: int) -> int:
        """Channels that stay of so many."""


class HeadDimFormat(WidthFormat):
    """An attention whose heads have fewer dimensions; ``kept`` counts dimensions of a head."""


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """An attention's matrices by head, fp32: H query heads, G key-value heads, D dimensions."""

    query_HDI: Tensor  # noqa: N815 - shape suffix
    key_GDI: Tensor  # noqa: N815 - shape suffix
    value_GDI: Tensor  # noqa: N815 - shape suffix
    output_OHD: Tensor  # noqa: N815 - shape suffix
    units: tuple[tuple[int, ...], ...]
    """Dimensions of queries and keys that a rotation by position mixes."""


@dataclass(frozen=True, kw_only=True)
class NarrowHeads:
    """Heads with fewer dimensions."""

    kept: tuple[int, ...]
    """Dimensions of queries and keys that stay as they are, rising, the same in all heads."""
    value_GRI: Tensor  # noqa: N815 - shape suffix
    """fp32"""
    output_OHR: Tensor  # noqa: N815 - shape suffix
    """fp32"""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What is between the linears of a part, and comes from rows of its own: an activation of an
    FFN, or a key-value head with the query heads that read it.

    Row r of a reader of R = pieces * width rows belongs to channel r mod width (one piece behind
    the other, gate and up in one matrix), or to r // pieces (``interleaved``).
    """

    writer: str
    """The linear whose inputs they are; a site, or its name inside the block."""
    width: int
    readers: Mapping[str, tuple[int, bool]]
    """The linears that make them -> pieces, and whether these are interleaved."""
    columns: int = 1
    """Inputs of the writer that are one channel, side by side."""

    def inputs(self, kept: Sequence[int]) -> list[int]:
        """Inputs of the writer that belong to some channels, in order."""
        return [channel * self.columns + place for channel in kept for place in range(self.columns)]

    def rows(self, reader: str, kept: Sequence[int]) -> list[int]:
        """Rows of a reader that belong to some channels, in order."""
        pieces, interleaved = self.readers[reader]
        if interleaved:
            return [channel * pieces + piece for channel in kept for piece in range(pieces)]
        return [piece * self.width + channel for piece in range(pieces) for channel in kept]


class WidthMethod(ABC):
    """A method that chooses which channels of a part stay, and fits the matrix behind them again.

    Implementations are frozen, keyword-only dataclasses.
    """

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    family: ClassVar[str]
    """width."""
    version: ClassVar[int]
    """Raised whenever the result changes: part of the library's key."""
    fills: ClassVar[type[Format]]
    """The kind of format it can fill."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Statistic]:
        """Statistics it reads with these hyperparameters; it is handed no others."""

    @abstractmethod
    def narrow(
        self,
        W_OI: Tensor,
        statistics: Statistics,
        channels: int,
        *,
        columns: int = 1,
        readers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Channels that stay, int64 [K] rising, and the weight behind them, fp32 [O, K columns].

        ``W_OI`` is the matrix that reads all channels, ``columns`` inputs each, fp32;
        ``statistics`` are of its inputs; ``readers`` [channels, D], fp32, make them, a row each.
        Raises ``NumericalError`` with the reason when no finite solution is found.
        """

    def narrow_heads(self, heads: HeadWeights, statistics: Statistics, dims: int) -> NarrowHeads:
        """Heads of ``dims`` dimensions; ``statistics`` are of what queries, keys and values read.

        Raises ``NumericalError`` with the reason: here, that the method keeps all dimensions.
        """
        raise NumericalError("this method keeps the dimensions of heads; modegpt narrows them")


class DistillingMethod(WidthMethod):
    """One whose plain matrices are then trained to give what the whole part gave in its block.

    Implementations are frozen, keyword-only dataclasses with these fields.
    """

    steps: int
    """Forwards and backwards of a block that it takes; 0: none."""
    rate: float
    """First learning rate, relative to the size of an element."""
    checks: int
    """How often the batches that nothing is trained on are asked, beside once before."""
