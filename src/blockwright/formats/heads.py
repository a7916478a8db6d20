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

from dataclasses import dataclass
from typing import ClassVar

from blockwright.formats._smaller import SmallerPart
from blockwright.types import PartRole


@dataclass(frozen=True, kw_only=True)
class HeadsFormat(SmallerPart):
    """``heads-p50``, at an attention; ``percent`` of its key-value heads stay."""

    role: ClassVar[PartRole] = PartRole.ATTENTION
    stem: ClassVar[str] = "heads"
    meaning: ClassVar[str] = (
        "attention with fewer heads is heads-p1 to heads-p99, the percentage of its key-value heads"
        " that stay, e.g. heads-p50"
    )
    use_of_values: ClassVar[str] = "as the values of the smaller matrices, e.g. heads-p50+int8"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("heads-p50", "heads-p75", "heads-p50+int8")

    def kept(self, channels: int) -> int:
        return max(channels * self.percent // 100, 1)


FORMAT = HeadsFormat
