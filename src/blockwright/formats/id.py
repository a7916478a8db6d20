"""id: some rows of a weight of low rank, and how the others mix them.

Paper:   Cheng, Gimbutas, Martinsson, Rokhlin, "On the Compression of Low Rank Matrices", SISC 2005
         (interpolative decomposition); the row form of CUR.
Idea:    A matrix of rank R has R rows of which all others are mixtures.  Written down so, R of its
         rows stand there as they are: R (O + I - R) numbers in place of the R (O + I) of two
         factors, for the same weight.  At half the bytes of a square weight the rank is 0.29 of
         its side instead of 0.25; unlike two factors it is never larger than the weight.

Names:   id-p50 (50% of the dense numbers, so half the bytes while values are bf16), p1 to p99;
         id-r64 (the rank itself).  +int8, +int4-g64 ...: rows and mixing stored so.
Stored:  weight      uint8, empty, so that plain loading raises
         place       int16 [O], int32 above 32768 outputs: where each output stands
         kept.*      [R, I] in the format of the values
         mixing.*    [O - R, R] in the format of the values
         bias        as it was
Shapes:  O out features, I in features, R rank.
Units:   bits per weight = (bits of the values) R (O + I - R) / (O I) + 16 / I.
Kernels: y_R = kept x, then mixing y_R, each on the kernel of its values; one gather of outputs.
Raises:  CandidateError for an unknown name, FormatError for a rank that the shape or the groups of
         the values cannot hold, or a newer version.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.formats._composite import (
    CompositeLinear,
    empty_parts,
    packed_part,
    position_dtype,
)
from blockwright.formats._ranked import SizedFormat
from blockwright.types import InterpolatedFormat, InterpolatedSolution, Solution


@dataclass(frozen=True)
class IdFormat(SizedFormat, InterpolatedFormat):
    """``id-p<percent>`` or ``id-r<rank>``."""

    stem: ClassVar[str] = "id"
    version: ClassVar[int] = 1
    large_rank: ClassVar[float] = 256
    default_method: ClassVar[str | None] = "lord"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("id-p50", "id-p75", "id-r32", "id-p50+int8", "id-r32+int4-g32")

    def most_rank(self, shape: tuple[int, int]) -> int:
        """One output at least is mixed."""
        return min(shape[0] - 1, shape[1])

    def rank_within(self, shape: tuple[int, int]) -> int:
        """The largest R with R (O + I - R) + O at most ``percent`` of O I; places count as O."""
        out_features, in_features = shape
        both, most = out_features + in_features, self.most_rank(shape)
        numbers = self.percent * out_features * in_features // 100 - out_features
        if numbers <= 0 or most < 1:
            return 0
        rank = (both - isqrt(max(both**2 - 4 * numbers, 0))) // 2
        while rank > 0 and rank * (both - rank) > numbers:
            rank -= 1
        return min(rank, most)

    def position_bytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * position_dtype(shape[0]).itemsize

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> IdLinear:
        if not isinstance(solution, InterpolatedSolution):
            raise TypeError(f"{self.name} stores an InterpolatedSolution, not {solution}")
        kept = packed_part(self.values, solution.kept, dtype)
        mixing = packed_part(self.values, solution.mixing, dtype)
        out_features = kept.out_features + mixing.out_features
        return IdLinear(
            self,
            (out_features, kept.in_features),
            parts={"kept": kept, "mixing": mixing},
            positions={"place": solution.place_O.to(position_dtype(out_features))},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> IdLinear:
        place = torch.empty(shape[0], dtype=position_dtype(shape[0]), device=device)
        return IdLinear(
            self,
            shape,
            parts=empty_parts(self, shape, dtype, device),
            positions={"place": place},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class IdLinear(CompositeLinear):
    """The packed module: outputs of the rows, outputs that mix those, each put in its place."""

    place: Tensor

    @property
    def kernel(self) -> str:
        return f"2 x {self.part('kept').kernel}, gathered"

    def product(self, x: Tensor) -> Tensor:
        of_kept = self.part("kept").product(x)
        both = torch.cat([of_kept, self.part("mixing").product(of_kept)], dim=-1)
        return both.index_select(-1, self.place.int())

    def differentiable_weight(self) -> Tensor:
        kept = self.part("kept").differentiable_weight()
        return self._in_place(kept, self.part("mixing").differentiable_weight() @ kept)

    def dequantize(self) -> Tensor:
        kept = self.part("kept").dequantize()
        return self._in_place(kept, self.part("mixing").dequantize() @ kept)

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)

    def _in_place(self, kept: Tensor, mixed: Tensor) -> Tensor:
        """Each output where it belongs."""
        return torch.cat([kept, mixed]).index_select(0, self.place.int())


FORMAT = IdFormat
