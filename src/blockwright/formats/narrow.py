"""narrow: an FFN with fewer channels; its matrices are plain and smaller.

Idea:    The channels between the two sides of an FFN are computed one by one from rows of the first
         matrices, and read as columns of the last: any of them can be left out, and what is left is
         an ordinary, smaller FFN that runs faster everywhere.

Stored:  the model's own tensors at smaller shapes, under their own names; the folder's config lists
         the shapes.  There is no packed module.
Units:   ``narrow-p75`` keeps 75% of the channels, rounded down to a multiple of 8.
Raises:  CandidateError for another name, FormatError for a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats._spec import check_version
from blockwright.types import FormatLimits, SiteKind, WidthFormat

MULTIPLE = 8
"""Widths that kernels take without padding."""
NAME = re.compile(r"narrow-p([1-9]\d?)")


@dataclass(frozen=True)
class NarrowFormat(WidthFormat):
    """``narrow-p75``, at an FFN."""

    percent: int = 75
    """Channels that stay, in percent."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.PART})
    default_method: ClassVar[str | None] = "modegpt"

    @property
    def name(self) -> str:
        return f"narrow-p{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; a narrower FFN is narrow-p1 to narrow-p99, the"
                " percentage of its channels that stay, e.g. narrow-p75"
            )
        return cls(percent=int(match[1]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("narrow-p75", "narrow-p50")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def kept(self, channels: int) -> int:
        wanted = channels * self.percent // 100
        return max(wanted // MULTIPLE * MULTIPLE, min(MULTIPLE, channels))

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Whatever has channels can have fewer."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of the matrix that reads the channels, ``(out, channels)``, in 16 bits."""
        return 2 * shape[0] * self.kept(shape[1])

    def spec(self) -> dict[str, Any]:
        return {"format": "narrow", "version": self.version, "percent": self.percent}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(percent=int(spec["percent"]))


FORMAT = NarrowFormat
