"""sparse: zeros that are not stored; every row keeps equally many weights.

Paper:   N:M from Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4).
Idea:    The kept values stand row by row in a dense matrix of their own, in any format of values,
         beside their positions.  2:4 is what the tensor cores of CUDA GPUs multiply; everything
         else is smaller on disk only.

Names:   sparse2of4: 2 of every 4 consecutive inputs stay; N below M, M of 4, 8 or 16.
         sparse50: 50% of every row is zero, anywhere; sparse10 to sparse90.
         +int8, +int4-g64 ...: the kept values stored so (without a pattern: whole rows, +int4).
Stored:  weight      uint8, empty, so that plain loading raises
         positions   uint8, flat: N:M dense log2(M)-bit places in their group [O, K]; otherwise one
                     bit per weight [O, I]
         values.*    [O, K] in the format of the values
         bias        as it was
Shapes:  O out features, I in features, K = kept inputs per row.
Units:   bits per weight = K / I (bits of the values + log2 M), or K / I bits + 1.
Kernels: CUDA, 2:4, bf16 or fp16: torch's semi-structured product, where a probe multiplies right.
         Everywhere else, CPU above all: dequantized once, when first multiplied, then an ordinary
         matmul.  No speed is claimed there.
Raises:  CandidateError for an unknown name or values, FormatError for a shape or a newer version.
Checked: the CUDA path was not run: it needs hardware.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import values_from
from blockwright.formats._masked import MaskedLinear, Matrix, empty_masked, pack_masked
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.bf import BfFormat
from blockwright.numerics.masks import keep_n_of_m, keep_per_row, kept_columns
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.semi_structured import SemiStructuredMatrix
from blockwright.types import (
    Format,
    FormatLimits,
    GridFormat,
    MaskedFormat,
    SiteKind,
    Solution,
    ValueFormat,
)

NAME = re.compile(r"sparse(?:(?P<n>[1-9][0-9]?)of(?P<m>4|8|16)|(?P<percent>[1-9]0))")


@dataclass(frozen=True)
class SparseFormat(MaskedFormat):
    """``sparse<n>of<m>`` or ``sparse<percent>``."""

    percent: int = 0
    """Share of zeros in every row; 0 where there is a pattern."""
    n: int = 0
    m: int = 0
    values: ValueFormat = field(default_factory=BfFormat)

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "sparsegpt"

    def __post_init__(self) -> None:
        pattern = 0 < self.n < self.m and self.m in (4, 8, 16)
        if pattern == (0 < self.percent < 100) or (self.m > 0) != pattern:
            raise FormatError(
                f"sparse format of {self.n} of {self.m} and {self.percent}% zeros: give n below m"
                " of 4, 8 or 16, or a percentage"
            )

    @property
    def structure(self) -> str:
        return f"sparse{self.n}of{self.m}" if self.m else f"sparse{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        n, m = (int(match[key] or 0) for key in ("n", "m")) if match else (0, 0)
        if match is None or n > m - 1 >= 0:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'sparse2of4'? (sparseNofM: N below M of"
                " every M inputs stay, M of 4, 8 or 16; or sparse10 to sparse90: percent of zeros;"
                " then +int8 or the like, or nothing)"
            )
        return cls(percent=int(match["percent"] or 0), n=n, m=m)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        plain = ("sparse2of4", "sparse1of4", "sparse4of8", "sparse3of16", "sparse50", "sparse80")
        return (*plain, "sparse2of4+int4-g32", "sparse2of4+int8", "sparse50+int4")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.m or 1,
            packed_on_cpu=False,
            resident_bits=16.0 + self._position_bits + self._resident_value_bits,
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        """On CPU: the dequantized bfloat16 weight, positions, and values that it does not hold."""
        if torch.device(device).type != "cpu":
            return self.stored_bytes(shape)
        dense = shape[0] * shape[1] * torch.bfloat16.itemsize
        if isinstance(self.values, BfFormat):
            return dense + self.position_bytes(shape)
        return dense + self.stored_bytes(shape)

    @property
    def pattern_size(self) -> int:
        return self.m

    def kept(self, in_features: int) -> int:
        if self.m:
            return in_features // self.m * self.n
        return round(in_features * (100 - self.percent) / 100)

    def best_mask(self, score_OJ: Tensor, kept: int | None = None) -> Tensor:
        if self.m:
            return keep_n_of_m(score_OJ, self.n, self.m)
        return keep_per_row(score_OJ, self.kept(score_OJ.shape[1]) if kept is None else kept)

    def with_values(self, values: Format) -> Self:
        grouped = isinstance(values, GridFormat) and values.group_size
        if grouped and not self.m:
            raise CandidateError(
                f"{self.structure}+{values.name}: groups of kept values would begin at another"
                " input in every row; use values with one scale per row, e.g. +int4 or +int8"
            )
        if grouped and isinstance(values, GridFormat) and values.group_size % self.n:
            raise CandidateError(
                f"{self.structure}+{values.name}: groups of {values.group_size} values are not"
                f" whole patterns of {self.n}; use +int4 or +int8, one scale per row"
            )
        return super().with_values(values)

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        in_features = shape[1]
        if self.m and in_features % self.m:
            raise FormatError(
                f"{self.name}: {where}: {in_features} inputs are not whole groups of {self.m};"
                f" use sparse{self._zero_tenths}0 or a format without a pattern"
            )
        if self.kept(in_features) < 1:
            raise FormatError(f"{self.name}: {where}: nothing of {in_features} inputs would stay")

    def position_bytes(self, shape: tuple[int, int]) -> int:
        out_features, in_features = shape
        if self.m:
            return packed_bytes(self.index_bits, out_features, self.kept(in_features))
        return packed_bytes(1, out_features, in_features)

    @property
    def index_bits(self) -> int:
        """Bits of a place inside a group."""
        return (self.m - 1).bit_length()

    @property
    def _zero_tenths(self) -> int:
        """Zeros in steps of 10%, from 1 to 9."""
        return min(max(round(10 - 10 * self.n / self.m), 1), 9)

    @property
    def _position_bits(self) -> float:
        return self.index_bits * self.n / self.m if self.m else 1.0

    @property
    def _resident_value_bits(self) -> float:
        """What stays beside the dequantized weight, which replaces bfloat16 values."""
        if isinstance(self.values, BfFormat):
            return 0.0
        density = self.n / self.m if self.m else 1 - self.percent / 100
        return self.values.limits.resident_bits * density

    def spec(self) -> dict[str, Any]:
        return {
            "format": "sparse",
            "version": self.version,
            "percent": self.percent,
            "n": self.n,
            "m": self.m,
            "values": self.values.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(
            spec_field(spec, "percent"),
            spec_field(spec, "n"),
            spec_field(spec, "m"),
            values_from(spec),
        )

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> SparseLinear:
        return pack_masked(SparseLinear, self, solution, bias_O, dtype)

    def packed_positions(self, mask_OI: Tensor) -> Tensor:
        """The mask as stored; raises ``ValueError`` where it breaks the pattern or the count."""
        K = self.kept(mask_OI.shape[1])
        per_group = mask_OI.view(-1, self.m or mask_OI.shape[1]).sum(1)
        if (per_group != (self.n or K)).any():
            raise ValueError(f"{self.name}: the mask keeps {per_group.unique().tolist()} per group")
        if not self.m:
            return pack_codes(mask_OI.to(torch.uint8), 1)
        places = kept_columns(mask_OI, K) % self.m
        return pack_codes(places.to(torch.uint8), self.index_bits)

    def columns(self, positions: Tensor, shape: tuple[int, int]) -> Tensor:
        """int64 [O, K]: the kept columns of every row, rising; inverts ``packed_positions``."""
        O, I = shape  # noqa: E741
        K = self.kept(I)
        if not self.m:
            return kept_columns(unpack_codes(positions, 1, O, I).bool(), K)
        places = unpack_codes(positions, self.index_bits, O, K).long()
        groups = torch.arange(K, device=positions.device).div(self.n, rounding_mode="floor")
        return places + groups * self.m

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> SparseLinear:
        return empty_masked(SparseLinear, self, shape, bias=bias, dtype=dtype, device=device)


class SparseLinear(MaskedLinear):
    """The packed module."""

    format: SparseFormat  # narrower than the base's

    def columns(self) -> Tensor:
        return self.format.columns(self.positions, self._shape)

    def matrix_of(self, kept_OK: Tensor) -> Matrix | Tensor:
        dense_OI = kept_OK.new_zeros(self._shape).scatter_(1, self.columns(), kept_OK)
        sparse = SemiStructuredMatrix.of(dense_OI, self.format.n, self.format.m)
        return dense_OI if sparse is None else sparse

    @property
    def kernel(self) -> str:
        sparse = isinstance(self._matrix, SemiStructuredMatrix)
        return "semi-structured" if sparse else "dequantized once"


FORMAT = SparseFormat
