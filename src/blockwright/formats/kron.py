"""kron: a sum of Kronecker products of small matrices.

Paper:   Van Loan and Pitsianis, "Approximation with Kronecker Products", 1993 (the form; where the
         factors come from: methods/lowrank/kron.py).
Idea:    W_hat = sum_r A_r (x) B_r: every block of the weight is a mixture of the same B_r.  With
         A_r [O, 2] and B_r [1, I / 2] both halves of the inputs go through one right factor:
         R (2 O + I / 2) numbers in place of the R (O + I) of low rank, of which it is a relative.
         Larger blocks make smaller factors, and more multiplications per stored number.

Names:   kron2-p50 (A_r [O, 2]; 50% of the dense numbers), kron4-p25, kron2-r64 (64 products);
         kron16x32-p50 (A_r [16, 32]).  +int8, +int4-g64 ...: both factors stored so.
Stored:  weight      uint8, empty, so that plain loading raises
         left.*      [o1, i1 R] in the format of the values: A_r [o1, i1], r fastest
         right.*     [o2 R, i2] in the format of the values: B_r [o2, i2], r fastest
         bias        as it was
Shapes:  O = o1 o2 out features, I = i1 i2 in features, R products.
Units:   bits per weight = (bits of the values) R (o1 i1 + o2 i2) / (O I).
Kernels: x as [i1, i2] times all B_r, then times all A_r, each on the kernel of its values.  Where
         that takes more multiplications than forming the weight and multiplying once (many tokens,
         many products, o2 > 1), the weight is formed for the call.
Raises:  CandidateError for an unknown name, FormatError for a shape that is not whole blocks, a
         number of products that the shape or the groups of the values cannot hold, or a newer
         version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import CompositeLinear, empty_parts, packed_part, values_from
from blockwright.formats._ranked import SizedFormat
from blockwright.formats._spec import check_version, spec_field
from blockwright.types import KroneckerFormat, KroneckerSolution, KroneckerSplit, Solution

NAME = re.compile(
    r"kron(?:(?P<rows>[1-9][0-9]*)x)?(?P<columns>[1-9][0-9]*)"
    r"-(?:p(?P<percent>[1-9][0-9]?)|r(?P<rank>[1-9][0-9]*))"
)


@dataclass(frozen=True)
class KronFormat(SizedFormat, KroneckerFormat):
    """``kron<columns>-p<percent>``, or ``kron<rows>x<columns>-r<products>``."""

    rows: int = 0
    """o1; 0 = as many as the weight has."""
    columns: int = 2
    """i1"""

    stem: ClassVar[str] = "kron"
    version: ClassVar[int] = 1
    large_rank: ClassVar[float] = 256
    default_method: ClassVar[str | None] = "kron"

    @property
    def kind(self) -> str:
        return f"kron{self.rows}x{self.columns}" if self.rows else f"kron{self.columns}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'kron2-p50'? (kron2-p1 to kron2-p99: the"
                " inputs in 2 parts, percent of the dense bytes; kron2-r64: the number of products;"
                " kron16x32-p50: left factors of 16 x 32; then +int8 or the like, or nothing)"
            )
        return cls(
            percent=int(match["percent"] or 0),
            fixed_rank=int(match["rank"] or 0),
            rows=int(match["rows"] or 0),
            columns=int(match["columns"]),
        )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        sizes = ("kron2-p50", "kron4-p25", "kron2-r16", "kron1x8-r2")
        return (*sizes, "kron2-p50+int8", "kron2-r16+int4-g32")

    def split(self, shape: tuple[int, int]) -> KroneckerSplit:
        return self._cut(shape, self.rank(shape))

    def _cut(self, shape: tuple[int, int], terms: int) -> KroneckerSplit:
        rows = self.rows or shape[0]
        return KroneckerSplit(rows, self.columns, shape[0] // rows, shape[1] // self.columns, terms)

    def most_rank(self, shape: tuple[int, int]) -> int:
        cut = self._cut(shape, 1)
        return min(cut.rows * cut.columns, cut.block_rows * cut.block_columns)

    def rank_within(self, shape: tuple[int, int]) -> int:
        cut = self._cut(shape, 1)
        numbers = cut.rows * cut.columns + cut.block_rows * cut.block_columns
        return min(self.percent * shape[0] * shape[1] // (100 * numbers), self.most_rank(shape))

    def rank_multiple(self, shape: tuple[int, int]) -> int:
        """Products whose left factors, side by side, fill whole groups of the values."""
        group = self.values.limits.in_multiple
        return group // gcd(group, self.columns)

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        for count, parts, what in (
            (shape[0], self.rows or 1, "out"),
            (shape[1], self.columns, "in"),
        ):
            if count % parts:
                allowed = ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
                raise FormatError(
                    f"{self.name}: {where}: {count} {what} features are not {parts} equal parts;"
                    f" these numbers divide them: {allowed}"
                )
        super().check_structure(shape, where)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "rows": self.rows, "columns": self.columns}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        percent, rank, *parts = (
            spec_field(spec, name) for name in ("percent", "rank", "rows", "columns")
        )
        return cls(percent, rank, values_from(spec), *parts)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> KronLinear:
        if not isinstance(solution, KroneckerSolution):
            raise TypeError(f"{self.name} stores a KroneckerSolution, not {solution}")
        split = solution.split
        return KronLinear(
            self,
            (split.rows * split.block_rows, split.columns * split.block_columns),
            parts={
                "left": packed_part(self.values, solution.left, dtype),
                "right": packed_part(self.values, solution.right, dtype),
            },
            positions={},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> KronLinear:
        return KronLinear(
            self,
            shape,
            parts=empty_parts(self, shape, dtype, device),
            positions={},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class KronLinear(CompositeLinear):
    """The packed module."""

    @property
    def split(self) -> KroneckerSplit:
        if not isinstance(self.format, KronFormat):
            raise TypeError(f"a KronLinear is of a kron format, not {self.format.name}")
        return self.format.split((self.out_features, self.in_features))

    @property
    def kernel(self) -> str:
        split = self.split
        return f"2 x {self.part('left').kernel}, {split.rows}x{split.columns}"

    def product(self, x: Tensor) -> Tensor:
        tokens = x.numel() // self.in_features
        if self.is_factored(tokens):
            return self.factored_product(x)
        return F.linear(x, self.formed(x.dtype))

    def is_factored(self, tokens: int) -> bool:
        """Whether two small products take no more multiplications than forming the weight and one
        large one.
        """
        dense = self.out_features * self.in_features
        split = self.split
        return tokens * split.factored_products <= (split.terms + tokens) * dense

    def formed(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I], formed in the dtype it is multiplied in."""
        left, right = self.part("left"), self.part("right")
        factors = left.differentiable_weight().to(dtype), right.differentiable_weight().to(dtype)
        return self.split.weight(*factors)

    def factored_product(self, x: Tensor) -> Tensor:
        """x W^T, the weight never formed."""
        split = self.split
        of_parts = self.part("right").product(x.reshape(-1, split.block_columns))
        shape = (-1, split.columns, split.block_rows, split.terms)
        by_block = of_parts.reshape(shape).transpose(1, 2)
        mixed = self.part("left").product(by_block.reshape(-1, split.columns * split.terms))
        y = mixed.reshape(-1, split.block_rows, split.rows).transpose(1, 2)
        return y.reshape(*x.shape[:-1], self.out_features)

    def differentiable_weight(self) -> Tensor:
        return self.formed(torch.float32)

    def dequantize(self) -> Tensor:
        return self.split.weight(self.part("left").dequantize(), self.part("right").dequantize())

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)


FORMAT = KronFormat
