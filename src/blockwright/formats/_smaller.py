"""Formats that leave a part or a block with ordinary matrices: fewer, or smaller ones, plain or
each stored in another format (``narrow-p75+int4-g64``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats import format_from_spec
from blockwright.formats._spec import check_version, spec_field
from blockwright.types import Format, FormatLimits, PackedFormat, SiteKind, WidthFormat


@dataclass(frozen=True, kw_only=True)
class OrdinaryMatrices(Format):
    """Own fields are told apart from ``values`` by being all the others, and have defaults."""

    values: PackedFormat | None = None
    """How the matrices are stored; None: as the original's."""

    version: ClassVar[int] = 1
    stem: ClassVar[str]
    """The file's name."""
    use_of_values: ClassVar[str]
    """What a refusal says of formats behind ``+``."""

    @property
    def plain_name(self) -> str:
        """The name without values."""
        return self.stem

    @property
    def name(self) -> str:
        return self.plain_name + (f"+{self.values.name}" if self.values else "")

    def with_values(self, values: Format) -> Self:
        if not isinstance(values, PackedFormat):
            raise CandidateError(
                f"{self.name}+{values.name}: {values.name} stores no matrix; '+' is followed by a"
                f" format of linears, {self.use_of_values}"
            )
        return replace(self, values=values)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Any shape will do; ``values`` have limits of their own."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of one matrix ``(out, in)``, in 16 bits where it is plain."""
        return self.values.stored_bytes(shape) if self.values else 2 * shape[0] * shape[1]

    def spec(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in _own_fields(type(self))}
        values = {"values": self.values.spec()} if self.values else {}
        return {"format": self.stem, "version": self.version} | own | values

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        own = {item.name: spec_field(spec, item.name) for item in _own_fields(cls)}
        plain = cls(**own)
        return plain.with_values(format_from_spec(spec["values"])) if "values" in spec else plain


@dataclass(frozen=True, kw_only=True)
class SmallerPart(OrdinaryMatrices, WidthFormat):
    """``<stem>-p75``: a part that keeps 75 percent of something."""

    percent: int = 75
    """What stays, in percent."""

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.PART})
    default_method: ClassVar[str | None] = "modegpt"
    meaning: ClassVar[str]
    """What a refusal says of names."""

    @property
    def plain_name(self) -> str:
        return f"{self.stem}-p{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = re.fullmatch(rf"{cls.stem}-p([1-9]\d?)", name)
        if match is None:
            raise CandidateError(f"unknown format {name!r}; {cls.meaning}")
        return cls(percent=int(match[1]))

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of the matrix that reads what stays, ``(out, in)``, in 16 bits where it is plain."""
        return super().stored_bytes((shape[0], self.kept(shape[1])))


def _own_fields(cls: type[OrdinaryMatrices]) -> list[Any]:
    return [item for item in fields(cls) if item.name != "values"]
