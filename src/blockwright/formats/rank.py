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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import CompositeLinear, empty_parts, packed_part, values_from
from blockwright.formats._spec import check_version
from blockwright.formats.bf import BfFormat
from blockwright.types import (
    FactoredFormat,
    FactoredSolution,
    FormatLimits,
    SiteKind,
    Solution,
    ValueFormat,
)

NAME = re.compile(r"rank-(?:p(?P<percent>[1-9][0-9]?)|r(?P<rank>[1-9][0-9]*))")


@dataclass(frozen=True)
class RankFormat(FactoredFormat):
    """``rank-p<percent>`` or ``rank-r<rank>``."""

    percent: int = 0
    """Share of the dense numbers; 0 where the rank is fixed."""
    fixed_rank: int = 0
    """0 where the rank follows from ``percent``."""
    values: ValueFormat = field(default_factory=BfFormat)

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "svd"

    def __post_init__(self) -> None:
        if not 0 <= self.percent < 100 or (self.percent > 0) == (self.fixed_rank > 0):
            raise FormatError(
                f"rank format of {self.percent}% and rank {self.fixed_rank}: give one of them, the"
                " percentage from 1 to 99"
            )

    @property
    def structure(self) -> str:
        return f"rank-p{self.percent}" if self.percent else f"rank-r{self.fixed_rank}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'rank-p50'? (rank-p1 to rank-p99: percent"
                " of the dense bytes, or rank-r64: the rank; then +int8 or the like, or nothing)"
            )
        return cls(percent=int(match["percent"] or 0), fixed_rank=int(match["rank"] or 0))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("rank-p50", "rank-p75", "rank-r32", "rank-p50+int8", "rank-r32+int4-g32")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.values.limits.in_multiple,
            packed_on_cpu=self.values.limits.packed_on_cpu,
            resident_bits=self.values.limits.resident_bits * (self.percent or 100) / 100,
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        parts = self.part_shapes(shape).values()
        return sum(self.values.resident_bytes(part, device) for part in parts)

    def rank(self, shape: tuple[int, int]) -> int:
        """The largest within ``percent`` that fills whole groups of the values; at least 0."""
        if self.fixed_rank:
            return self.fixed_rank
        out_features, in_features = shape
        rank = self.percent * out_features * in_features // (100 * (out_features + in_features))
        return rank - rank % self.values.limits.in_multiple

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        out_features, in_features = shape
        rank, most = self.rank(shape), min(shape)
        if rank > most:
            raise FormatError(
                f"{self.name}: {where}: rank {rank} is above the {most} that a weight of"
                f" {out_features} x {in_features} can have; use rank-r{most} at most"
            )
        if rank < 1:
            raise FormatError(
                f"{self.name}: {where}: {self.percent}% of {out_features} x {in_features} is less"
                f" than one rank of {self.values.limits.in_multiple}; use a higher percentage"
                " or smaller groups of the values"
            )

    def spec(self) -> dict[str, Any]:
        return {
            "format": "rank",
            "version": self.version,
            "percent": self.percent,
            "rank": self.fixed_rank,
            "values": self.values.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        try:
            return cls(spec["percent"], spec["rank"], values_from(spec))
        except KeyError as missing:
            raise FormatError(f"format spec {dict(spec)} lacks {missing}") from None

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
