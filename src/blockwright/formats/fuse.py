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

from dataclasses import dataclass
from typing import ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats._smaller import OrdinaryMatrices
from blockwright.types import FuseFormat, SiteKind


@dataclass(frozen=True, kw_only=True)
class FusedFormat(OrdinaryMatrices, FuseFormat):
    """``fuse`` or ``fuse-next``, at the block that stays."""

    behind: bool = False

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.BLOCK})
    default_method: ClassVar[str | None] = "fusegpt"
    stem: ClassVar[str] = "fuse"
    use_of_values: ClassVar[str] = "as the values of a fused block, e.g. fuse+int4-g64"

    @property
    def plain_name(self) -> str:
        return "fuse-next" if self.behind else "fuse"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name not in ("fuse", "fuse-next"):
            raise CandidateError(
                f"unknown format {name!r}; 'fuse' takes over the block in front, 'fuse-next' the"
                " one behind"
            )
        return cls(behind=name == "fuse-next")

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("fuse", "fuse-next", "fuse+int4-g64")


FORMAT = FusedFormat
