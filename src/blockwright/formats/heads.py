"""heads: attention with fewer key-value heads, and fewer of the query heads that read them.

Idea:    Attention computes its heads one by one from rows of the first matrices, and the last one
         reads them side by side: a key-value head can be left out with the query heads that read
         it.  What is left is ordinary, smaller attention with a smaller KV cache.

Stored:  the model's own tensors at smaller shapes, under their own names, or packed as ``+`` says
         (``heads-p50+int8``); the folder's config lists the shapes.  There is no packed module of
         its own.
Units:   ``heads-p50`` keeps half of the key-value heads, rounded down, one at least.
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

NAME = re.compile(r"heads-p([1-9]\d?)")


@dataclass(frozen=True)
class HeadsFormat(WidthFormat):
    """``heads-p50``, at an attention."""

    percent: int = 50
    """Key-value heads that stay, in percent."""
    values: PackedFormat | None = None
    """How the smaller matrices are stored; None: as the original's."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.PART})
    default_method: ClassVar[str | None] = "modegpt"
    role: ClassVar[PartRole] = PartRole.ATTENTION

    @property
    def name(self) -> str:
        return f"heads-p{self.percent}" + (f"+{self.values.name}" if self.values else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; attention with fewer heads is heads-p1 to heads-p99, the"
                " percentage of its key-value heads that stay, e.g. heads-p50"
            )
        return cls(percent=int(match[1]))

    def with_values(self, values: Format) -> Self:
        if not isinstance(values, PackedFormat):
            raise CandidateError(
                f"{self.name}+{values.name}: {values.name} stores no matrix; '+' is followed by a"
                " format of linears, as the values of the smaller matrices, e.g. heads-p50+int8"
            )
        return replace(self, values=values)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("heads-p50", "heads-p75", "heads-p50+int8")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def kept(self, channels: int) -> int:
        return max(channels * self.percent // 100, 1)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Whatever has heads can have fewer."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of the matrix that reads the heads, ``(out, in)``, in 16 bits where it is plain, as if
        every input were a head.
        """
        smaller = shape[0], self.kept(shape[1])
        return self.values.stored_bytes(smaller) if self.values else 2 * smaller[0] * smaller[1]

    def spec(self) -> dict[str, Any]:
        spec = {"format": "heads", "version": self.version, "percent": self.percent}
        return spec | ({"values": self.values.spec()} if self.values else {})

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        heads = cls(percent=int(spec["percent"]))
        return heads.with_values(format_from_spec(spec["values"])) if "values" in spec else heads


FORMAT = HeadsFormat
