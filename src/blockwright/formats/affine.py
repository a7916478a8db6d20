"""affine: uniform levels from any real start, of 1 to 8 bits, in groups of inputs or rows.

Paper:   the float zero point of Badri and Shaji, "Half-Quadratic Quantization of Large Machine
         Learning Models", 2023.
Idea:    W_hat = scale (code - center) + offset, center = 2^(bits - 1).  An integer zero point moves
         the levels by whole steps only; a real one puts them where they serve best, which is worth
         most at few bits.  With one bit it is two values of one's choice.

Names:   affine4-g64, affine4-row; 1 to 8 bits, groups of 32, 64, 128 or the row.
Stored:  weight      uint8, flat, so that plain loading raises: dense ``bits``-bit codes of [O, I]
         scale       bfloat16 [O, G]
         offset      bfloat16 [O, G]
         bias        as it was
Shapes:  O out features, I in features, T tokens, G = I / group_size (1 for rows).
Units:   bits per weight = bits + 32 / group_size.
Kernels: bf16 on CPU, few tokens: the int4 kernel, whose constant is the offset, exactly; resident
         in 4 bits up to affine4 and in two planes of 4 bits above.  Many tokens, other dtypes or
         devices, and rows of inputs that no kernel group divides: dequantized in chunks.
Differs: the stored zero is the value at the middle code in bfloat16, which the kernel adds, not
         a zero point in units of the scale.  0 need not be a level.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._grouped import (
    GROUP_NAME,
    GROUP_SIZES,
    GroupedLinear,
    Layout,
    Matrix,
)
from blockwright.formats._int4 import Int4Format, Int4Linear, int4_matrix
from blockwright.formats._spec import check_version, spec_field
from blockwright.numerics.grids import OffsetGrid
from blockwright.numerics.int8_cpu import Int8Matrix
from blockwright.numerics.ranges import SCALE_DTYPE, fit_offset, search_offset
from blockwright.types import GridSolution, OffsetFormat, Solution

NAME = re.compile(rf"affine(?P<bits>[1-8])-(?P<group>{GROUP_NAME})")


class AffineLinear(Int4Linear):
    """The packed module."""

    format: AffineFormat  # narrower than the base's

    def decoded(self, codes_RGJ: Tensor, rows: slice | Tensor) -> Tensor:
        scale, offset = (
            self.get_buffer(name)[rows].float().unsqueeze(-1) for name in ("scale", "offset")
        )
        centered = codes_RGJ.float() - (1 << (self.format.bits - 1))
        return centered.mul_(scale).add_(offset)

    def packed_matrix(self) -> Matrix | None:
        group = self._group()
        if group is None:
            return None
        shape = (self.out_features, self.in_features // group)
        scale, offset = (self.get_buffer(name).expand(shape) for name in ("scale", "offset"))
        codes = self._codes(slice(None))
        return int4_matrix().with_offset(codes, scale, offset, bits=self.format.bits, group=group)

    def beside_of(self, matrix: Matrix) -> dict[str, Tensor]:
        assert not isinstance(matrix, Int8Matrix)
        groups = self.format.groups(self.in_features)
        return {
            "scale": matrix.scale()[:, :groups].contiguous(),
            "offset": matrix.offsets()[:, :groups].contiguous(),
        }


@dataclass(frozen=True)
class AffineFormat(Int4Format, OffsetFormat):
    """``affine{bits}-{g<group_size>|row}``."""

    bits: int
    group_size: int

    version: ClassVar[int] = 1
    default_method: ClassVar[str | None] = "hqq"
    module = AffineLinear

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9) or self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"affine format of {self.bits} bits in groups of {self.group_size}: allowed are 1"
                f" to 8 bits and groups of {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        return f"affine{self.bits}-" + (f"g{self.group_size}" if self.group_size else "row")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'affine4-g64'? (affine1 to affine8, then"
                " -g32, -g64, -g128 or -row)"
            )
        return cls(int(match["bits"]), 0 if match["group"] == "row" else int(match["group"][1:]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("affine1-g64", "affine1-row", "affine3-g32", "affine4-g64", "affine8-g128")

    @property
    def code_bits(self) -> int:
        return self.bits

    def layout(self, out_features: int, groups: int) -> Layout:
        of_groups = ((out_features, groups), SCALE_DTYPE)
        return {"scale": of_groups, "offset": of_groups}

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def fit_grid(
        self, W_OI: Tensor, *, search: bool = False, importance_I: Tensor | None = None
    ) -> OffsetGrid:
        size = self.group_size or W_OI.shape[1]
        W_OGJ = W_OI.float().reshape(W_OI.shape[0], -1, size)
        if search:
            importance_GJ = None if importance_I is None else importance_I.float().view(-1, size)
            scale, offset = search_offset(W_OGJ, self.bits, importance_GJ)
        else:
            scale, offset = fit_offset(W_OGJ, self.bits)
        return OffsetGrid(scale, offset, 1 << self.bits, self.group_size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> GroupedLinear:
        if not isinstance(solution, GridSolution) or not isinstance(solution.grid, OffsetGrid):
            raise TypeError(f"{self.name} stores codes of an OffsetGrid, not {solution}")
        grid = solution.grid
        beside = {
            "scale": grid.scale.to(SCALE_DTYPE, copy=True),
            "offset": grid.offset.to(SCALE_DTYPE, copy=True),
        }
        return self.packed(solution.codes_OI, beside, bias_O, dtype)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "affine",
            "version": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "bits"), spec_field(spec, "group_size"))


FORMAT = AffineFormat
