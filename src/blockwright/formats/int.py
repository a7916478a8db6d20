"""int: uniform integers of 2 to 8 bits, one scale (and zero point) per group of inputs or per row.

Paper:   the common format of GPTQ, AWQ and round-to-nearest; packing from "Tilus", 2025.
Idea:    W_hat = scale (code - zero_point).  Small groups follow outliers, at 16 (+ bits) extra bits
         each; whole rows are cheapest.  An asymmetric group spends its codes on the values that
         are there, a symmetric one stores no zero point.

Names:   int4-g64 (asymmetric), int4-g64-sym, int4-row, int4-row-sym = int4, and so for 2 to 8 bits;
         groups of 32, 64, 128 or the row.
Stored:  weight      uint8, flat, so that plain loading raises: dense ``bits``-bit codes of [O, I]
         scale       bfloat16 [O, G]
         zero_point  uint8, flat: dense ``bits``-bit codes of [G, O]; asymmetric only
         bias        as it was
Shapes:  O out features, I in features, T tokens, G = I / group_size (1 for rows).
Units:   bits per weight = bits + (16 + bits or 0) / group_size.
Kernels: bf16 on CPU, few tokens: the native kernel, where it was built; else symmetric rows of 5 to
         8 bits on the int8 kernel and all else on the int4 kernel.  Resident in 4 bits up to int4,
         in 8 (two planes of 4) above; the native kernel keeps int2 in 2 bits, int5 and int6 in 6.
         Many tokens or other dtypes: unpacked once per call in
         chunks, then an ordinary matmul.  Other devices, and rows of inputs that no kernel group
         divides: the same, from the dense codes.
Differs: the int4 kernel's additive constant (8 - z) scale is rounded to bfloat16.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product, starmap
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
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.int4_library import native_int4
from blockwright.numerics.int8_cpu import Int8Matrix, int8_matrix_bytes
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.ranges import SCALE_DTYPE, fit_range, search_range
from blockwright.types import (
    FormatLimits,
    GridSolution,
    Solution,
    ZeroPointFormat,
)

NAME = re.compile(rf"int(?P<bits>[2-8])(?:-(?P<group>{GROUP_NAME})(?P<symmetric>-sym)?)?")


class IntLinear(Int4Linear):
    """The packed module."""

    format: IntFormat  # narrower than the base's

    def decoded(self, codes_RGJ: Tensor, rows: slice | Tensor) -> Tensor:
        scale = self.get_buffer("scale")[rows].float().unsqueeze(-1)
        return torch.sub(codes_RGJ, self._zero_points(rows).unsqueeze(-1)).mul_(scale)

    def packed_matrix(self) -> Matrix | None:
        bits, scale, every = self.format.bits, self.get_buffer("scale"), slice(None)
        if self._is_on_int8():
            return Int8Matrix.pack(self._codes(every), scale[:, 0], bits=bits)
        group = self._group()
        if group is None:
            return None
        shape = (self.out_features, self.in_features // group)
        zero_points = self._zero_points(every).expand(shape)
        return int4_matrix().pack(
            self._codes(every), scale.expand(shape), zero_points, bits=bits, group=group
        )

    def beside_of(self, matrix: Matrix) -> dict[str, Tensor]:
        groups = self.format.groups(self.in_features)
        beside = {"scale": matrix.scale()[:, :groups].contiguous()}
        if not isinstance(matrix, Int8Matrix) and not self.format.symmetric:
            zero_point = matrix.zero_point()[:, :groups].to(torch.uint8)
            beside["zero_point"] = pack_codes(zero_point.t().contiguous(), self.format.bits)
        return beside

    @property
    def kernel(self) -> str:
        return "int8" if self._is_on_int8() else super().kernel

    def _is_on_int8(self) -> bool:
        if self._matrix is not None:
            return isinstance(self._matrix, Int8Matrix)
        return self.format.is_on_int8(self.in_features, self.device)

    def _zero_points(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, G], or [1, 1]"""
        if self.format.symmetric:
            return torch.full((1, 1), 1 << (self.format.bits - 1), device=self.device).float()
        groups = self.format.groups(self.in_features)
        stored = self.get_buffer("zero_point")
        codes_GO = unpack_codes(stored, self.format.bits, groups, self.out_features)
        return codes_GO.t()[rows].float()


@dataclass(frozen=True)
class IntFormat(Int4Format, ZeroPointFormat):
    """``int{bits}-{g<group_size>|row}[-sym]``."""

    bits: int
    group_size: int
    symmetric: bool

    version: ClassVar[int] = 1
    module = IntLinear

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9) or self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"int format of {self.bits} bits in groups of {self.group_size}: allowed are 2 to 8"
                f" bits and groups of {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        if self.group_size == 0 and self.symmetric:
            return f"int{self.bits}"
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"int{self.bits}-{group}" + ("-sym" if self.symmetric else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            names = [each.name for each in cls.every()]
            alike = [each for each in names if each.startswith(name[:4])]
            close = difflib.get_close_matches(name, alike or names, n=1)
            raise CandidateError(
                f"unknown format {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else ";")
                + " (int2 to int8, then -g32, -g64, -g128 or -row, then -sym or nothing)"
            )
        group = match["group"]
        return cls(
            bits=int(match["bits"]),
            group_size=int(group[1:]) if group and group != "row" else 0,
            symmetric=group is None or match["symmetric"] is not None,
        )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        """Every two of width, group size and symmetry together: half of all there are."""
        return tuple(
            each.name
            for each in cls.every()
            if each.symmetric == (each.bits + GROUP_SIZES.index(each.group_size)) % 2
        )

    @classmethod
    def every(cls) -> tuple[Self, ...]:
        """All there are."""
        return tuple(starmap(cls, product(range(2, 9), GROUP_SIZES, (False, True))))

    @property
    def limits(self) -> FormatLimits:
        limits = super().limits
        return replace(
            limits,
            vllm=self.bits in (4, 8),
            llama_cpp=self.bits in (4, 8) and self.group_size == 32 and self.symmetric,
            packed_on_cpu=self._has_int8_rows or limits.packed_on_cpu,
        )

    def is_on_int8(self, in_features: int, device: str | torch.device) -> bool:
        """Whether PyTorch's int8 kernel multiplies: all symmetric rows of more than 4 bits that the
        native kernel, where it was built, does not take.
        """
        if not self._has_int8_rows or torch.device(device).type != "cpu":
            return False
        return not native_int4() or self.kernel_group(in_features, device) is None

    @property
    def _has_int8_rows(self) -> bool:
        return self.bits > 4 and self.symmetric and self.group_size == 0

    @property
    def code_bits(self) -> int:
        return self.bits

    def layout(self, out_features: int, groups: int) -> Layout:
        scale = {"scale": ((out_features, groups), SCALE_DTYPE)}
        zero_points = (packed_bytes(self.bits, groups, out_features),)
        return scale if self.symmetric else scale | {"zero_point": (zero_points, torch.uint8)}

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        if self.is_on_int8(shape[1], device):
            return int8_matrix_bytes(shape)
        return super().resident_bytes(shape, device)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "int",
            "version": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        bits, size, symmetric = (spec_field(spec, n) for n in ("bits", "group_size", "symmetric"))
        return cls(bits, size, bool(symmetric))

    def fit_grid(
        self, W_OI: Tensor, *, search: bool = False, importance_I: Tensor | None = None
    ) -> AffineGrid:
        size = self.group_size or W_OI.shape[1]
        W_OGJ = W_OI.float().reshape(W_OI.shape[0], -1, size)
        if search:
            importance_GJ = None if importance_I is None else importance_I.float().view(-1, size)
            scale, zero_point = search_range(W_OGJ, self.bits, self.symmetric, importance_GJ)
        else:
            scale, zero_point = fit_range(W_OGJ, self.bits, self.symmetric)
        return AffineGrid(scale, zero_point, 1 << self.bits, self.group_size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> GroupedLinear:
        if not isinstance(solution, GridSolution) or not isinstance(solution.grid, AffineGrid):
            raise TypeError(f"{self.name} stores codes of an AffineGrid, not {solution}")
        grid = solution.grid
        beside = {"scale": grid.scale.to(SCALE_DTYPE, copy=True)}
        if not self.symmetric:
            zero_point_GO = grid.zero_point.to(torch.uint8).t().contiguous()
            beside["zero_point"] = pack_codes(zero_point_GO, self.bits)
        return self.packed(solution.codes_OI, beside, bias_O, dtype)


FORMAT = IntFormat
