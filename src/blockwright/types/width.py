"""Narrower parts: the format and the method of an FFN with fewer channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockwright.types.format import Format, PackedFormat

if TYPE_CHECKING:
    from torch import Tensor

    from blockwright.types.statistics import Statistic, Statistics


class WidthFormat(Format):
    """A part with fewer channels, its matrices smaller: plain, or each stored in ``values``."""

    values: PackedFormat | None

    @abstractmethod
    def kept(self, channels: int) -> int:
        """Channels that stay of so many."""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What is between the linears of an FFN: activations that each come from rows of their own.

    Row r of a reader of R = pieces * width rows belongs to channel r mod width (one piece behind
    the other, gate and up in one matrix), or to r // pieces (``interleaved``).
    """

    writer: str
    """The linear whose inputs they are; a site, or its name inside the block."""
    width: int
    readers: Mapping[str, tuple[int, bool]]
    """The linears that make them -> pieces, and whether these are interleaved."""

    def rows(self, reader: str, kept: list[int]) -> list[int]:
        """Rows of a reader that belong to some channels, in order."""
        pieces, interleaved = self.readers[reader]
        if interleaved:
            return [channel * pieces + piece for channel in kept for piece in range(pieces)]
        return [piece * self.width + channel for piece in range(pieces) for channel in kept]


class WidthMethod(ABC):
    """A method that chooses which channels of an FFN stay, and fits the matrix behind them again.

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
    def narrow(self, W_OI: Tensor, statistics: Statistics, channels: int) -> tuple[Tensor, Tensor]:
        """Channels that stay, int64 [K] rising, and the weight behind them, fp32 [O, K].

        ``W_OI`` is the matrix that reads all channels, fp32; ``statistics`` are of its inputs.
        Raises ``NumericalError`` with the reason when no finite solution is found.
        """
