"""mix: most rows in 4 bits, those that the loss feels most in 8.

Paper:   Zheng, Song, Liu, "MixLLM: LLM Quantization with Global Mixed-precision between
         Output-features and Highly-efficient System Design", 2024.
Idea:    Output features differ in importance by orders of magnitude.  A row is one grid inside, so
         two plain products and one reordering of the outputs multiply the whole.

Names:   mix-p10-g128: 10% of the rows in 8 bits, groups of 32, 64 or 128; p1 to p90.
Stored:  weight      uint8, empty, so that plain loading raises
         is_wide     uint8, flat: one bit per row
         narrow.*    [O - K, I] as int4-g128
         wide.*      [K, I] as int8-g128-sym
         bias        as it was
Shapes:  O out features, I in features, K = percent O / 100, rounded, from 1 to O - 1.
Units:   bits per weight = (1 - K / O) (4 + 20 / g) + K / O (8 + 16 / g) + 1 / I.
Kernels: those of int4-g128 and int8-g128-sym, then an index over the outputs.
Differs: inputs are not rounded to 8 bits (the paper's W4.4A8 kernel); a bit per row says where it
         is (theirs: a list of row numbers).
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import PlacedLinear, empty_part, packed_part
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.int import IntFormat
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.types import (
    FormatLimits,
    MixedRowsFormat,
    MixedRowsSolution,
    SiteKind,
    Solution,
)

NAME = re.compile(r"mix-p(?P<percent>[1-9][0-9]?)-g(?P<group>32|64|128)")
MOST_PERCENT = 90
PLACE_BYTES = 4
"""Resident, per row: where its output stands."""


@dataclass(frozen=True)
class MixFormat(MixedRowsFormat):
    """``mix-p<percent>-g<group_size>``."""

    percent: int
    group_size: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "mixllm"

    def __post_init__(self) -> None:
        if not 0 < self.percent <= MOST_PERCENT or self.group_size not in (32, 64, 128):
            raise FormatError(
                f"mix format with {self.percent}% of the rows wide, in groups of {self.group_size}:"
                f" allowed are 1 to {MOST_PERCENT} and groups of 32, 64 or 128"
            )

    @property
    def name(self) -> str:
        return f"mix-p{self.percent}-g{self.group_size}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None or int(match["percent"]) > MOST_PERCENT:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'mix-p10-g128'? (mix-p1 to mix-p90: percent"
                " of the rows in 8 bits, then -g32, -g64 or -g128)"
            )
        return cls(int(match["percent"]), int(match["group"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("mix-p10-g128", "mix-p50-g32")

    @property
    def narrow(self) -> IntFormat:
        return IntFormat(4, self.group_size, symmetric=False)

    @property
    def wide(self) -> IntFormat:
        return IntFormat(8, self.group_size, symmetric=True)

    def wide_rows(self, out_features: int) -> int:
        return min(max(1, round(out_features * self.percent / 100)), out_features - 1)

    def part_shapes(self, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Part -> (rows, inputs)."""
        out_features, in_features = shape
        wide = self.wide_rows(out_features)
        return {"narrow": (out_features - wide, in_features), "wide": (wide, in_features)}

    @property
    def limits(self) -> FormatLimits:
        share = self.percent / 100
        narrow, wide = self.narrow.limits, self.wide.limits
        return FormatLimits(
            in_multiple=self.group_size,
            packed_on_cpu=narrow.packed_on_cpu and wide.packed_on_cpu,
            resident_bits=(1 - share) * narrow.resident_bits + share * wide.resident_bits,
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        if shape[0] < 2:
            raise FormatError(
                f"{self.name}: {where}: {shape[0]} outputs cannot be of two kinds; use"
                f" {self.narrow.name} or {self.wide.name}"
            )
        if shape[1] < 1 or shape[1] % self.group_size:
            fitting = [g for g in (32, 64) if shape[1] and shape[1] % g == 0]
            names = [type(self)(self.percent, group).name for group in fitting] or ["int4-row"]
            raise FormatError(
                f"{self.name}: {where}: group size {self.group_size} does not divide {shape[1]}"
                f" inputs; use {' or '.join(names)}"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        parts = self.part_shapes(shape)
        stored = self.narrow.stored_bytes(parts["narrow"]) + self.wide.stored_bytes(parts["wide"])
        return packed_bytes(1, 1, shape[0]) + stored

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        parts = self.part_shapes(shape)
        narrow = self.narrow.resident_bytes(parts["narrow"], device)
        wide = self.wide.resident_bytes(parts["wide"], device)
        return packed_bytes(1, 1, shape[0]) + PLACE_BYTES * shape[0] + narrow + wide

    def spec(self) -> dict[str, Any]:
        return {
            "format": "mix",
            "version": self.version,
            "percent": self.percent,
            "group_size": self.group_size,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "percent"), spec_field(spec, "group_size"))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> MixLinear:
        if not isinstance(solution, MixedRowsSolution):
            raise TypeError(f"{self.name} stores a MixedRowsSolution, not {solution}")
        is_wide_O = solution.is_wide_O
        wanted = self.wide_rows(len(is_wide_O))
        if int(is_wide_O.sum()) != wanted:
            raise ValueError(f"{self.name}: {int(is_wide_O.sum())} wide rows, {wanted} needed")
        return MixLinear(
            self,
            (len(is_wide_O), solution.wide.codes_OI.shape[1]),
            parts={
                "narrow": packed_part(self.narrow, solution.narrow, dtype),
                "wide": packed_part(self.wide, solution.wide, dtype),
            },
            positions={"is_wide": pack_codes(is_wide_O.to(torch.uint8)[None], 1)},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> MixLinear:
        shapes = self.part_shapes(shape)
        parts = {"narrow": self.narrow, "wide": self.wide}
        bits = torch.empty(packed_bytes(1, 1, shape[0]), dtype=torch.uint8, device=device)
        return MixLinear(
            self,
            shape,
            parts={n: empty_part(part, shapes[n], dtype, device) for n, part in parts.items()},
            positions={"is_wide": bits},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class MixLinear(PlacedLinear):
    """The packed module; its places are where each row's output stands."""

    format: MixFormat  # narrower than the base's
    is_wide: Tensor

    def product(self, x: Tensor) -> Tensor:
        stacked = torch.cat([self.part("narrow").product(x), self.part("wide").product(x)], dim=-1)
        return stacked.index_select(-1, *self.places)

    def differentiable_weight(self) -> Tensor:
        parts = [self.part(name).differentiable_weight() for name in ("narrow", "wide")]
        return torch.cat(parts).index_select(0, *self.find_places())

    def dequantize(self) -> Tensor:
        parts = [self.part(name).dequantize() for name in ("narrow", "wide")]
        return torch.cat(parts).index_select(0, *self.find_places())

    def find_places(self) -> tuple[Tensor]:
        """int32 [O]: the place of every row below the narrow ones, then the wide ones."""
        is_wide_O = unpack_codes(self.is_wide, 1, 1, self.out_features)[0]
        return (is_wide_O.argsort(stable=True).argsort().int(),)


FORMAT = MixFormat
