"""vq: one code for several consecutive weights of a row, in a codebook of the weight's own.

Paper:   Zhu, Li, Xin, Xu, "Addressing Representation Collapse in Vector Quantized Models with One
         Linear Layer" (SimVQ), 2024, applied to weights.
Idea:    256 vectors of four values are 2 bits per weight, but lie where weights do, not on a
         lattice of four levels.  If their values are 8-bit integers, the whole weight is an 8-bit
         integer matrix once it is looked up, and that has a kernel.

Names:   vq256-d4-g64: 256 entries for 4 inputs at once, a scale per group of 64 inputs; 16, 32, 64,
         128 or 256 entries, d2, d4 or d8, groups of 32, 64, 128 or the row.
Stored:  weight      uint8, flat, so that plain loading raises: dense codes [O, V] of log2 K bits
         codebook    int8 [K, D], -127 to 127
         scale       bfloat16 [O, G], 0 for groups of zeros
         bias        as it was
Shapes:  O out features, I in features, K entries of D values, V = I / D, G = I / group_size (1 for
         rows).
Units:   bits per weight = log2(K) / D + 16 / group_size + 8 K D / (O I).
Kernels: CPU, bf16: looked up once, when first multiplied, into int8 (rows, the int8 kernel) or
         int8-g64-sym (groups, the int4 kernel twice): 8 bits are resident beside the codes.
         Elsewhere: dequantized in chunks from the same.
Differs: 1. The codebook is stored, in 8-bit integers, which cost no precision that matters.
            SimVQ's can be made from a seed and a D x D map, which pays where codebooks are many.
         2. Scales in bfloat16.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._grouped import GROUP_NAME, GROUP_SIZES, GroupedLinear
from blockwright.formats._linear import BufferedLinear
from blockwright.formats._spec import check_not_empty, check_version, spec_field
from blockwright.formats.int import IntFormat
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import (
    FormatLimits,
    GridSolution,
    SiteKind,
    Solution,
    VectorFormat,
    VectorSolution,
)

NAME = re.compile(rf"vq(?P<entries>16|32|64|128|256)-d(?P<dim>[248])-(?P<group>{GROUP_NAME})")
ENTRIES, DIMS = (16, 32, 64, 128, 256), (2, 4, 8)
CENTER = 128
"""Zero point of the values as 8-bit codes."""


@dataclass(frozen=True)
class VqFormat(VectorFormat):
    """``vq{entries}-d{dim}-{g<group_size>|row}``."""

    entries: int
    dim: int
    group_size: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "simvq"

    def __post_init__(self) -> None:
        if (
            self.entries not in ENTRIES
            or self.dim not in DIMS
            or self.group_size not in GROUP_SIZES
        ):
            raise FormatError(
                f"vq format of {self.entries} entries for {self.dim} inputs in groups of"
                f" {self.group_size}: allowed are {ENTRIES} entries, {DIMS} inputs and groups of"
                f" {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"vq{self.entries}-d{self.dim}-{group}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'vq256-d4-row'? (vq16 to vq256, then -d2,"
                " -d4 or -d8, then -g32, -g64, -g128 or -row)"
            )
        group = 0 if match["group"] == "row" else int(match["group"][1:])
        return cls(int(match["entries"]), int(match["dim"]), group)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("vq16-d2-g64", "vq256-d4-row", "vq256-d8-g32")

    @property
    def code_bits(self) -> int:
        """log2 of the entries."""
        return self.entries.bit_length() - 1

    @property
    def values(self) -> IntFormat:
        """The format of the weight once it is looked up."""
        return IntFormat(8, self.group_size, symmetric=True)

    def groups(self, in_features: int) -> int:
        """Groups per row, G."""
        return self.values.groups(in_features)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size or self.dim,
            packed_on_cpu=self.values.limits.packed_on_cpu,
            resident_bits=self.values.limits.resident_bits + self.code_bits / self.dim,
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)
        in_features = shape[1]
        if in_features % (self.group_size or self.dim):
            raise FormatError(
                f"{self.name}: {where}: {self.group_size or self.dim} does not divide"
                f" {in_features} inputs; use {self._fitting(in_features)}"
            )

    def _fitting(self, in_features: int) -> str:
        """A format for so many inputs."""
        for dim in sorted(DIMS, key=lambda each: abs(each - self.dim)):
            if in_features % dim == 0:
                return type(self)(self.entries, dim, 0).name
        return "int2-row"

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        out_features, in_features = shape
        codes = packed_bytes(self.code_bits, out_features, in_features // self.dim)
        scales = SCALE_DTYPE.itemsize * out_features * self.groups(in_features)
        return codes + scales + self.entries * self.dim

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        return self.stored_bytes(shape) + self.values.resident_bytes(shape, device)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "vq",
            "version": self.version,
            "entries": self.entries,
            "dim": self.dim,
            "group_size": self.group_size,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        entries, dim, size = (spec_field(spec, key) for key in ("entries", "dim", "group_size"))
        return cls(entries, dim, size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> VqLinear:
        if not isinstance(solution, VectorSolution):
            raise TypeError(f"{self.name} stores a VectorSolution, not {solution}")
        codes_OV, codebook_KD = solution.codes_OV, solution.codebook_KD
        if tuple(codebook_KD.shape) != (self.entries, self.dim):
            raise ValueError(
                f"{self.name}: a codebook of {tuple(codebook_KD.shape)},"
                f" ({self.entries}, {self.dim}) needed"
            )
        return VqLinear(
            self,
            (codes_OV.shape[0], codes_OV.shape[1] * self.dim),
            weight=pack_codes(codes_OV, self.code_bits),
            codebook=codebook_KD.to(torch.int8, copy=True),
            scale=solution.scale_OG.to(SCALE_DTYPE, copy=True),
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> VqLinear:
        out_features, in_features = shape
        codes = packed_bytes(self.code_bits, out_features, in_features // self.dim)
        scales = (out_features, self.groups(in_features))
        return VqLinear(
            self,
            shape,
            weight=torch.empty(codes, dtype=torch.uint8, device=device),
            codebook=torch.empty((self.entries, self.dim), dtype=torch.int8, device=device),
            scale=torch.empty(scales, dtype=SCALE_DTYPE, device=device),
            bias=torch.empty(out_features, dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class VqLinear(BufferedLinear):
    """The packed module.  Prepared, ``_values`` is the weight looked up, beside its codes."""

    format: VqFormat  # narrower than the base's
    weight: Tensor
    codebook: Tensor
    scale: Tensor
    _values: GroupedLinear | None = None

    # -- states

    def prepare(self) -> Self:
        """A module whose scales are trained stays portable."""
        if self._values is None and not self.scale.requires_grad:
            with torch.inference_mode(False), torch.no_grad():
                object.__setattr__(self, "_values", self._looked_up().prepare())  # no submodule
        return self

    def restore(self) -> Self:
        object.__setattr__(self, "_values", None)
        return self

    def replace_stored(self, name: str, tensor: Tensor) -> None:
        self.restore()
        super().replace_stored(name, tensor)

    @property
    def kernel(self) -> str:
        if self._values is not None:
            return self._values.kernel
        shape = (self.out_features, self.in_features)
        device = str(self.device)
        return self.format.values.empty(shape, bias=False, dtype=self.dtype, device=device).kernel

    @property
    def resident_bytes(self) -> int:
        looked_up = 0 if self._values is None else self._values.resident_bytes
        return super().resident_bytes + looked_up

    # -- products

    def product(self, x: Tensor) -> Tensor:
        values = self.prepare()._values
        if values is None or (torch.is_grad_enabled() and self.scale.requires_grad):
            return F.linear(x, self.differentiable_weight().to(x.dtype))
        return values.product(x)

    def differentiable_weight(self) -> Tensor:
        return self._decoded(slice(None))

    def dequantize(self) -> Tensor:
        with torch.no_grad():
            return self._decoded(slice(None))

    def rows(self, index: Tensor) -> Tensor:
        with torch.no_grad():
            return self._decoded(index).to(self.dtype)

    # -- details

    def _entries(self, rows: slice | Tensor) -> Tensor:
        """int8 [rows, I]"""
        vectors = self.in_features // self.format.dim
        codes = self.weight.view(self.out_features, -1)[rows]
        codes_RV = unpack_codes(codes.reshape(-1), self.format.code_bits, len(codes), vectors)
        return self.codebook[codes_RV.int()].view(len(codes), -1)

    def _decoded(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, I]"""
        scale_RG1 = self.scale[rows].float().unsqueeze(-1)
        entries = self._entries(rows).float()
        return (entries.view(*scale_RG1.shape[:2], -1) * scale_RG1).view(entries.shape)

    def _looked_up(self) -> GroupedLinear:
        """The weight as 8-bit integers; groups of scale 0 as zeros, which the kernels need."""
        is_zero_OG = self.scale == 0
        entries = self._entries(slice(None)).view(*is_zero_OG.shape, -1)
        entries = entries.masked_fill(is_zero_OG.unsqueeze(-1), 0).view(self.out_features, -1)
        scale_OG = self.scale.masked_fill(is_zero_OG, 1.0).float()
        grid = AffineGrid(scale_OG, torch.full_like(scale_OG, CENTER), 256, self.format.group_size)
        codes_OI = entries.view(torch.uint8) + CENTER  # bytes wrap
        solution = GridSolution(codes_OI=codes_OI, grid=grid)
        return self.format.values.pack(solution, None, self.dtype)


FORMAT = VqFormat
