"""The base of formats of low rank: how large the rank is, by name.

``-p50``: the largest rank that takes 50% of the dense numbers; ``-r64``: the rank itself.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, lcm
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import values_from
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.bf import BfFormat
from blockwright.types import CompositeFormat, FormatLimits, SiteKind, ValueFormat

SIZE = re.compile(r"(?P<stem>[a-z]+)-(?:p(?P<percent>[1-9][0-9]?)|r(?P<rank>[1-9][0-9]*))")

KERNEL_MULTIPLE = 16
"""The kernel of 8-bit values takes no other number of inputs."""


@dataclass(frozen=True)
class SizedFormat(CompositeFormat):
    """``<stem>-p<percent>`` or ``<stem>-r<rank>``."""

    percent: int = 0
    """Share of the dense numbers; 0 where the rank is fixed."""
    fixed_rank: int = 0
    """0 where the rank follows from ``percent``."""
    values: ValueFormat = field(default_factory=BfFormat)

    stem: ClassVar[str]
    large_rank: ClassVar[float] = inf
    """From here on ranks that follow from ``percent`` are multiples of ``KERNEL_MULTIPLE``."""
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})

    def __post_init__(self) -> None:
        if not 0 <= self.percent < 100 or (self.percent > 0) == (self.fixed_rank > 0):
            raise FormatError(
                f"{self.stem} format of {self.percent}% and rank {self.fixed_rank}: give one of"
                " them, the percentage from 1 to 99"
            )

    @abstractmethod
    def most_rank(self, shape: tuple[int, int]) -> int:
        """The largest rank that such a weight can be stored with."""

    @abstractmethod
    def rank_within(self, shape: tuple[int, int]) -> int:
        """The largest rank that takes ``percent`` of the dense numbers."""

    @property
    def kind(self) -> str:
        """The name without its size."""
        return self.stem

    @property
    def structure(self) -> str:
        size = f"p{self.percent}" if self.percent else f"r{self.fixed_rank}"
        return f"{self.kind}-{size}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = SIZE.fullmatch(name)
        if match is None or match["stem"] != cls.stem:
            raise CandidateError(
                f"unknown format {name!r}; did you mean '{cls.stem}-p50'? ({cls.stem}-p1 to"
                f" {cls.stem}-p99: percent of the dense bytes, or {cls.stem}-r64: the rank; then"
                " +int8 or the like, or nothing)"
            )
        return cls(percent=int(match["percent"] or 0), fixed_rank=int(match["rank"] or 0))

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.values.limits.in_multiple,
            packed_on_cpu=self.values.limits.packed_on_cpu,
            resident_bits=self.values.limits.resident_bits * (self.percent or 100) / 100,
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        parts = self.part_shapes(shape).values()
        values = sum(self.values.resident_bytes(part, device) for part in parts)
        return self.position_bytes(shape) + values

    def rank(self, shape: tuple[int, int]) -> int:
        """The largest within ``percent`` that fills whole groups of the values; at least 0."""
        if self.fixed_rank:
            return self.fixed_rank
        rank, multiple = self.rank_within(shape), self.rank_multiple(shape)
        if rank >= self.large_rank:
            multiple = lcm(multiple, KERNEL_MULTIPLE)
        return rank - rank % multiple

    def rank_multiple(self, shape: tuple[int, int]) -> int:
        """Ranks that fill whole groups of the values."""
        return self.values.limits.in_multiple

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        out_features, in_features = shape
        rank, most = self.rank(shape), self.most_rank(shape)
        if rank > most:
            raise FormatError(
                f"{self.name}: {where}: rank {rank} is above the {most} that a weight of"
                f" {out_features} x {in_features} can have; use {self.kind}-r{most} at most"
            )
        if rank < 1:
            raise FormatError(
                f"{self.name}: {where}: {self.percent}% of {out_features} x {in_features} is less"
                f" than one rank of {self.rank_multiple(shape)}; use a higher percentage or smaller"
                " groups of the values"
            )

    def spec(self) -> dict[str, Any]:
        return {
            "format": self.stem,
            "version": self.version,
            "percent": self.percent,
            "rank": self.fixed_rank,
            "values": self.values.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "percent"), spec_field(spec, "rank"), values_from(spec))
