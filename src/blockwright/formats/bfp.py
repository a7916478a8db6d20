"""bfp: block floating point, a power of two for N neighbouring inputs and small integers.

Paper:   Trukhanov and Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024.
Idea:    W_hat = mantissa 2^e.  An exponent costs 8 bits where a scale costs 16, and a product of
         mantissas needs no multiplication by scales, only shifts.  A power of two is up to twice
         as coarse as the range needs, which costs more error than the bits saved are worth where
         one outlier decides it: `ksort+bfp4-b32` puts outliers together.

Names:   bfp4-b32: mantissas of 4 bits (4 to 8), groups of 32, 64 or 128 inputs.
Stored:  weight      uint8, flat, so that plain loading raises: dense ``bits``-bit codes of [O, I],
                     mantissa + 2^(bits - 1)
         exponent    int8 [O, G]
         bias        as it was
Shapes:  O out features, I in features, G = I / group_size.
Units:   bits per weight = bits + 8 / group_size.
Kernels: those of symmetric int codes of as many bits, with 2^e as the scale: bfloat16 holds it.
Differs: groups of 16 are not offered, no kernel takes them.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version,
         NumericalError for scales that are no powers of two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError, NumericalError
from blockwright.formats._grouped import GroupedLinear, Layout, Matrix
from blockwright.formats._int4 import Int4Format, Int4Linear, int4_matrix
from blockwright.formats._spec import check_version, spec_field
from blockwright.numerics.block_floating_point import (
    EXPONENT_DTYPE,
    fit_exponents,
    search_exponents,
    step_sizes,
)
from blockwright.numerics.finite import all_finite
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import GridSolution, Solution

GROUP_SIZES = (32, 64, 128)
NAME = re.compile(r"bfp(?P<bits>[4-8])-b(?P<group>32|64|128)")


class BfpLinear(Int4Linear):
    """The packed module."""

    format: BfpFormat  # narrower than the base's

    def decoded(self, codes_RGJ: Tensor, rows: slice | Tensor) -> Tensor:
        scale = step_sizes(self.get_buffer("exponent")[rows]).unsqueeze(-1)
        return torch.sub(codes_RGJ, float(self.format.center)).mul_(scale)

    def packed_matrix(self) -> Matrix | None:
        group = self._group()
        if group is None:
            return None
        shape = (self.out_features, self.in_features // group)
        scale = step_sizes(self.get_buffer("exponent")).to(SCALE_DTYPE).expand(shape)
        center = torch.full(shape, float(self.format.center))
        codes = self._codes(slice(None))
        return int4_matrix().pack(codes, scale, center, bits=self.format.bits, group=group)

    def beside_of(self, matrix: Matrix) -> dict[str, Tensor]:
        groups = self.format.groups(self.in_features)
        return {"exponent": exponents_of(matrix.scale()[:, :groups].contiguous())}


@dataclass(frozen=True)
class BfpFormat(Int4Format):
    """``bfp{bits}-b{group_size}``."""

    bits: int
    group_size: int

    version: ClassVar[int] = 1
    module = BfpLinear

    def __post_init__(self) -> None:
        if self.bits not in range(4, 9) or self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"bfp format of {self.bits} bits in groups of {self.group_size}: allowed are 4 to 8"
                f" bits and groups of {GROUP_SIZES}"
            )

    @property
    def name(self) -> str:
        return f"bfp{self.bits}-b{self.group_size}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'bfp4-b32'? (bfp4 to bfp8, then -b32, -b64"
                " or -b128)"
            )
        return cls(int(match["bits"]), int(match["group"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return tuple(f"bfp{bits}-b{size}" for bits in range(4, 9) for size in GROUP_SIZES)

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def center(self) -> int:
        """The code of 0."""
        return 1 << (self.bits - 1)

    def layout(self, out_features: int, groups: int) -> Layout:
        return {"exponent": ((out_features, groups), EXPONENT_DTYPE)}

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def fitting(self, in_features: int) -> list[str]:
        sizes = [size for size in GROUP_SIZES if in_features % size == 0]
        return [self.with_group_size(size).name for size in sizes] or [f"int{self.bits}"]

    def spec(self) -> dict[str, Any]:
        return {
            "format": "bfp",
            "version": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "bits"), spec_field(spec, "group_size"))

    def fit_grid(
        self, W_OI: Tensor, *, search: bool = False, importance_I: Tensor | None = None
    ) -> AffineGrid:
        if not all_finite(W_OI):
            raise NumericalError("a weight is not finite")
        if search:
            exponents = search_exponents(W_OI, self.bits, self.group_size, importance_I)
        else:
            exponents = fit_exponents(W_OI, self.bits, self.group_size)
        scale = step_sizes(exponents)
        zero_point = torch.full_like(scale, self.center)
        return AffineGrid(scale, zero_point, 1 << self.bits, self.group_size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> GroupedLinear:
        if not isinstance(solution, GridSolution) or not isinstance(solution.grid, AffineGrid):
            raise TypeError(f"{self.name} stores codes of an AffineGrid, not {solution}")
        scale = solution.grid.scale
        exponent = exponents_of(scale)
        if not torch.equal(step_sizes(exponent), scale.float()):
            raise NumericalError(f"{self.name} stores powers of two; some scales are none")
        return self.packed(solution.codes_OI, {"exponent": exponent}, bias_O, dtype)


def exponents_of(scale: Tensor) -> Tensor:
    """e of scales 2^e."""
    return (torch.frexp(scale.float())[1] - 1).to(EXPONENT_DTYPE)


FORMAT = BfpFormat
