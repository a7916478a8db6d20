"""narrow: an FFN with fewer channels; its matrices are smaller, plain or in another format.

Idea:    The channels between the two sides of an FFN are computed one by one from rows of the first
         matrices, and read as columns of the last: any of them can be left out, and what is left is
         an ordinary, smaller FFN that runs faster everywhere.

Stored:  the model's own tensors at smaller shapes, under their own names, or packed as ``+`` says
         (``narrow-p75+int4-g64``); the folder's config lists the shapes.  There is no packed module
         of its own.
Units:   ``narrow-p75`` keeps 75% of the channels, rounded down to a multiple of 8, of 64 where the
         matrices are stored in another format (groups of inputs have to fit).
Raises:  CandidateError for another name, FormatError for a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats import format_from_spec
from blockwright.formats._spec import check_version
from blockwright.types import Format, FormatLimits, PackedFormat, PartRole, SiteKind, WidthFormat

MULTIPLE, PACKED_MULTIPLE = 8, 64
"""Widths that kernels take without padding; that groups of inputs divide."""
NAME = re.compile(r"narrow-p([1-9]\d?)")


@dataclass(frozen=True)
class NarrowFormat(WidthFormat):
    """``narrow-p75``, at an FFN."""

    percent: int = 75
    """Channels that stay, in percent."""
    values: PackedFormat | None = None
    """How the smaller matrices are stored; None: as the original's."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.PART})
    default_method: ClassVar[str | None] = "modegpt"
    role: ClassVar[PartRole] = PartRole.FFN

    @property
    def name(self) -> str:
        return f"narrow-p{self.percent}" + (f"+{self.values.name}" if self.values else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; a narrower FFN is narrow-p1 to narrow-p99, the"
                " percentage of its channels that stay, e.g. narrow-p75"
            )
        return cls(percent=int(match[1]))

    def with_values(self, values: Format) -> Self:
        if not isinstance(values, PackedFormat):
            raise CandidateError(
                f"{self.name}+{values.name}: {values.name} stores no matrix; '+' is followed by a"
                " format of linears, e.g. narrow-p75+int4-g64"
            )
        return replace(self, values=values)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("narrow-p75", "narrow-p50", "narrow-p75+int4-g64")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def kept(self, channels: int) -> int:
        multiple = min(PACKED_MULTIPLE if self.values else MULTIPLE, channels)
        return max(channels * self.percent // 100 // multiple, 1) * multiple

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Whatever has channels can have fewer."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of the matrix that reads the channels, ``(out, channels)``, in 16 bits."""
        smaller = shape[0], self.kept(shape[1])
        return self.values.stored_bytes(smaller) if self.values else 2 * smaller[0] * smaller[1]

    def spec(self) -> dict[str, Any]:
        spec = {"format": "narrow", "version": self.version, "percent": self.percent}
        return spec | ({"values": self.values.spec()} if self.values else {})

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        narrow = cls(percent=int(spec["percent"]))
        return narrow.with_values(format_from_spec(spec["values"])) if "values" in spec else narrow


FORMAT = NarrowFormat
