"""rank: a product of two thin matrices.

Paper:   none for the format; methods/lowrank/svd.py says where the factors come from.
Idea:    W_hat = left right costs R (O + I) numbers, and as many multiplications per token, instead
         of O I.  The outputs of trained linears lie near a subspace, seen in the metric of their
         inputs; where they do not, rank is dear: at equal bytes int8 usually loses less.

Names:   rank-p50 (50% of the dense numbers, so half the bytes while values are bf16), p1 to p99;
         rank-r64 (the rank itself).  +int8, +int4-g64 ...: both factors stored so.
Stored:  weight      uint8, empty, so that plain loading raises
         left.*      [O, R] in the format of the values
         right.*     [R, I] in the format of the values
         bias        as it was
Shapes:  O out features, I in features, R rank.
Units:   bits per weight = (bits of the values) R (O + I) / (O I).
Kernels: two products, each on the kernel of its values.
Raises:  CandidateError for an unknown name, FormatError for a rank that the shape or the groups of
         the values cannot hold, or a newer version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.formats._composite import CompositeLinear, empty_parts, packed_part
from blockwright.formats._ranked import SizedFormat
from blockwright.types import FactoredFormat, FactoredSolution, Solution


@dataclass(frozen=True)
class RankFormat(SizedFormat, FactoredFormat):
    """``rank-p<percent>`` or ``rank-r<rank>``."""

    stem: ClassVar[str] = "rank"
    version: ClassVar[int] = 1
    default_method: ClassVar[str | None] = "svd"

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("rank-p50", "rank-p75", "rank-r32", "rank-p50+int8", "rank-r32+int4-g32")

    def most_rank(self, shape: tuple[int, int]) -> int:
        return min(shape)

    def rank_within(self, shape: tuple[int, int]) -> int:
        out_features, in_features = shape
        return self.percent * out_features * in_features // (100 * (out_features + in_features))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> RankLinear:
        if not isinstance(solution, FactoredSolution):
            raise TypeError(f"{self.name} stores a FactoredSolution, not {solution}")
        left = packed_part(self.values, solution.left, dtype)
        right = packed_part(self.values, solution.right, dtype)
        return RankLinear(
            self,
            (left.out_features, right.in_features),
            parts={"left": left, "right": right},
            positions={},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> RankLinear:
        return RankLinear(
            self,
            shape,
            parts=empty_parts(self, shape, dtype, device),
            positions={},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class RankLinear(CompositeLinear):
    """The packed module: x goes through the right factor, then the left one."""

    @property
    def kernel(self) -> str:
        return f"2 x {self.part('left').kernel}"

    def product(self, x: Tensor) -> Tensor:
        return self.part("left").product(self.part("right").product(x))

    def differentiable_weight(self) -> Tensor:
        left, right = self.part("left"), self.part("right")
        return left.differentiable_weight() @ right.differentiable_weight()

    def dequantize(self) -> Tensor:
        return self.part("left").dequantize() @ self.part("right").dequantize()

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)


FORMAT = RankFormat
