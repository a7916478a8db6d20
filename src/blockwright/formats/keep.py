"""keep: the original tensor, untouched.

Idea:    The last resort and the reference of every other format: nothing is stored but what the
         checkpoint holds, so nothing is lost.

Stored:  the checkpoint's own tensor under its own name.  There is no packed module.
Units:   ``stored_bytes`` counts ``element_bytes`` per weight: hand in the checkpoint's (2 = bf16).
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
class KeepFormat(Format):
    """``keep``, at any site."""

    element_bytes: int = 2

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset(SiteKind)
    default_method: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        return "keep"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name != "keep":
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'keep'? It takes no parameters"
            )
        return cls()

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("keep",)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(vllm=True, llama_cpp=True, resident_bits=8.0 * self.element_bytes)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Every shape can be kept."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] * self.element_bytes

    def spec(self) -> dict[str, Any]:
        return {"format": "keep", "version": self.version, "element_bytes": self.element_bytes}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(element_bytes=spec.get("element_bytes", 2))


FORMAT = KeepFormat
