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

from dataclasses import dataclass
from typing import ClassVar

from blockwright.formats._smaller import SmallerPart
from blockwright.types import PartRole

MULTIPLE, PACKED_MULTIPLE = 8, 64
"""Widths that kernels take without padding; that groups of inputs divide."""


@dataclass(frozen=True, kw_only=True)
class NarrowFormat(SmallerPart):
    """``narrow-p75``, at an FFN; ``percent`` of its channels stay."""

    role: ClassVar[PartRole] = PartRole.FFN
    stem: ClassVar[str] = "narrow"
    meaning: ClassVar[str] = (
        "a narrower FFN is narrow-p1 to narrow-p99, the percentage of its channels that stay, e.g."
        " narrow-p75"
    )
    use_of_values: ClassVar[str] = "e.g. narrow-p75+int4-g64"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("narrow-p75", "narrow-p50", "narrow-p75+int4-g64")

    def kept(self, channels: int) -> int:
        multiple = min(PACKED_MULTIPLE if self.values else MULTIPLE, channels)
        return max(channels * self.percent // 100 // multiple, 1) * multiple


FORMAT = NarrowFormat
