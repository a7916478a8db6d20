"""fuse: a block that also does what its neighbour did, which is dropped.

Idea:    A block that matters little is not thrown away: its neighbour is changed until it gives
         what both gave together.  What is left is an ordinary block, so the model has one less and
         is faster everywhere.

Stored:  the block's own tensors under their own names, plain, or packed as ``+`` says
         (``fuse+int4-g64``).  There is no packed module of its own, and nothing in the folder's
         config beside one layer less.
Units:   ``fuse`` takes over the block in front, ``fuse-next`` the one behind.
Raises:  CandidateError for another name, FormatError for a newer version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats import format_from_spec
from blockwright.formats._spec import check_version
from blockwright.types import Format, FormatLimits, FuseFormat, PackedFormat, SiteKind


@dataclass(frozen=True)
class FusedFormat(FuseFormat):
    """``fuse`` or ``fuse-next``, at the block that stays."""

    behind: bool = False
    values: PackedFormat | None = None
    """How its matrices are stored; None: as the original's."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.BLOCK})
    default_method: ClassVar[str | None] = "fusegpt"

    @property
    def name(self) -> str:
        own = "fuse-next" if self.behind else "fuse"
        return own + (f"+{self.values.name}" if self.values else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        if name not in ("fuse", "fuse-next"):
            raise CandidateError(
                f"unknown format {name!r}; 'fuse' takes over the block in front, 'fuse-next' the"
                " one behind"
            )
        return cls(behind=name == "fuse-next")

    def with_values(self, values: Format) -> Self:
        if not isinstance(values, PackedFormat):
            raise CandidateError(
                f"{self.name}+{values.name}: {values.name} stores no matrix; '+' is followed by a"
                " format of linears, as the values of a fused block, e.g. fuse+int4-g64"
            )
        return replace(self, values=values)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("fuse", "fuse-next", "fuse+int4-g64")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits()

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Shapes stay as they are; ``values`` have limits of their own."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Of one of its matrices, in 16 bits where they are plain."""
        return self.values.stored_bytes(shape) if self.values else 2 * shape[0] * shape[1]

    def spec(self) -> dict[str, Any]:
        spec = {"format": "fuse", "version": self.version, "behind": self.behind}
        return spec | ({"values": self.values.spec()} if self.values else {})

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        fused = cls(behind=bool(spec.get("behind", False)))
        return fused.with_values(format_from_spec(spec["values"])) if "values" in spec else fused


FORMAT = FusedFormat
