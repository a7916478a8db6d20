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

from dataclasses import dataclass
from typing import ClassVar

from blockwright.formats._smaller import SmallerPart
from blockwright.types import HeadDimFormat, PartRole

MULTIPLE, EVEN = 8, 2
"""Dimensions that kernels take without padding; that a rotation mixes."""


@dataclass(frozen=True, kw_only=True)
class FewerDims(SmallerPart, HeadDimFormat):
    """``headdim-p75``, at an attention; ``percent`` of every head's dimensions stay."""

    role: ClassVar[PartRole] = PartRole.ATTENTION
    stem: ClassVar[str] = "headdim"
    meaning: ClassVar[str] = (
        "heads with fewer dimensions are headdim-p1 to headdim-p99, the percentage that stays, e.g."
        " headdim-p75"
    )
    use_of_values: ClassVar[str] = "as the values of smaller matrices, e.g. headdim-p50+int8"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("headdim-p75", "headdim-p50", "headdim-p50+int8")

    def kept(self, channels: int) -> int:
        multiple = MULTIPLE if channels * self.percent // 100 >= MULTIPLE else EVEN
        return max(channels * self.percent // 100 // multiple, 1) * multiple


FORMAT = FewerDims
