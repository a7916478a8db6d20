"""drop: a block, its attention or its FFN left out; the residual stream passes it by.

Idea:    Middle blocks of deep models change the residual stream little; leaving one out saves all
         its bytes and its time.  Scores of single blocks do not add up: combinations are measured.
         ``drop`` is on offer at every block, attention and FFN; ``drop-run`` at blocks alone, and a
         plan then drops one run of neighbours, which later training repairs more easily.

Stored:  nothing.  There is no packed module: the assembled model has one block less, or stand-ins
         for the modules of the part (``anatomy.absent``).
Raises:  CandidateError for another name, FormatError for a newer version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError
from blockwright.formats._spec import check_version
from blockwright.types import Format, FormatLimits, SiteKind


@dataclass(frozen=True)
class DropFormat(Format):
    """``drop``, at a block or a part; ``drop-run`` offers blocks alone, and of these one run of
    neighbours in a plan.
    """

    run: bool = False

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.BLOCK, SiteKind.PART})
    default_method: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        return "drop-run" if self.run else "drop"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name not in cls.examples():
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'drop'? It takes no parameters; 'drop-run'"
                " leaves out neighbouring blocks only"
            )
        return cls(run=name == "drop-run")

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("drop", "drop-run")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(vllm=True, llama_cpp=True, resident_bits=0.0)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Whatever has a shape can be left out."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return 0

    def spec(self) -> dict[str, Any]:
        return {"format": "drop", "version": self.version, **({"run": True} if self.run else {})}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(run=bool(spec.get("run", False)))


FORMAT = DropFormat
