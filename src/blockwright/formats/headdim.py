"""headdim: attention whose heads have fewer dimensions, of queries and keys and of values.

Idea:    Scores are products of a head's queries and keys, and its outputs a product of values and
         a matrix: both have an inner dimension that can be less.  Dimensions of queries and keys
         that stay keep their places in the rotation by position; values are expressed in their best
         directions.  The matrices are smaller; where the forward expects whole heads there are
         zeros, so the KV cache keeps its size.

Stored:  the model's own tensors at smaller shapes, under their own names, or packed as ``+`` says
         (``headdim-p50+int8``); the folder's config lists shapes and places.  There is no packed
         module of its own.
Units:   ``headdim-p75`` keeps 75% of the dimensions of every head, rounded down to a multiple of 8
         where that leaves any.
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
from blockwright.types import Format, FormatLimits, HeadDimFormat, PackedFormat, PartRole, SiteKind

MULTIPLE, EVEN = 8, 2
"""Dimensions that kernels take without padding; that a rotation mixes."""
NAME = re.compile(r"headdim-p([1-9]\d?)")


@dataclass(frozen=True)
class FewerDims(HeadDimFormat):
    """``headdim-p75``, at an attention."""

    percent: int = 75
    """Dimensions that stay, in percent."""
    values: PackedFormat | None = None
    """How the smaller matrices are stored; None: as the original's."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.PART})
    default_method: ClassVar[str | None] = "modegpt"
    role: ClassVar[PartRole] = PartRole.ATTENTION

    @property
    def name(self) -> str:
        return f"headdim-p{self.percent}" + (f"+{self.values.name}" if self.values else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; heads with fewer dimensions are headdim-p1 to"
                " headdim-p99, the percentage that stays, e.g. headdim-p75"
            )
        return cls(percent=int(match[1]))

    def with_values(self, values: Format) -> Self:
        if not isinstance(values, PackedFormat):
            raise CandidateError(
                f"{self.name}+{values.name}: {values.name} stores no matrix; '+' is followed by a"
                " format of linears, as the values of smaller matrices, e.g. headdim-p50+int8"
            )
        return replace(self, values=values)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("headdim-p75", "headdim-p50", "headdim-p50+int8")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def kept(self, channels: int) -> int:
        multiple = MULTIPLE if channels * self.percent // 100 >= MULTIPLE else EVEN
        return max(channels * self.percent // 100 // multiple, 1) * multiple

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Whatever has heads can have smaller ones."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of the matrix that reads one head, ``(out, in)``, in 16 bits where it is plain."""
        smaller = shape[0], self.kept(shape[1])
        return self.values.stored_bytes(smaller) if self.values else 2 * smaller[0] * smaller[1]

    def spec(self) -> dict[str, Any]:
        spec = {"format": "headdim", "version": self.version, "percent": self.percent}
        return spec | ({"values": self.values.spec()} if self.values else {})

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        dims = cls(percent=int(spec["percent"]))
        return dims.with_values(format_from_spec(spec["values"])) if "values" in spec else dims


FORMAT = FewerDims
