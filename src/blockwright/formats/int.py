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
Kernels: bf16 on CPU, few tokens: symmetric rows of 5 to 8 bits on the int8 kernel, all else on the
         int4 kernel, resident in 4 bits up to int4 and in two planes of 4 bits above.  Many tokens
         or other dtypes: unpacked once per call in chunks, then an ordinary matmul.  Other devices,
         and rows of inputs that no kernel group divides: the same, from the dense codes.
Differs: the int4 kernel's additive constant (8 - z) scale is rounded to bfloat16.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._linear import FormatLinear, frozen_product
from blockwright.formats._spec import check_version
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.int4_cpu import (
    Int4Matrix,
    int4_matrix_bytes,
    kernel_group,
    tile_layout,
)
from blockwright.numerics.int8_cpu import Int8Matrix, int8_matrix_bytes
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.ranges import SCALE_DTYPE, fit_range, search_range
from blockwright.types import (
    AffineFormat,
    FormatLimits,
    GridSolution,
    SiteKind,
    Solution,
    StoredCodes,
)

GROUP_SIZES = (32, 64, 128, 0)
"""0 = the whole row."""
NAME = re.compile(r"int(?P<bits>[2-8])(?:-(?P<group>g32|g64|g128|row)(?P<symmetric>-sym)?)?")
CHUNK_WEIGHTS = 1 << 20
"""Weights dequantized at a time from dense codes: 4 MiB of fp32."""


@dataclass(frozen=True)
class IntFormat(AffineFormat):
    """``int{bits}-{g<group_size>|row}[-sym]``."""

    bits: int
    group_size: int
    symmetric: bool

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR, SiteKind.TABLE})
    default_method: ClassVar[str | None] = "rtn"

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
            names = cls.examples()
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
        return tuple(each.name for each in cls._all())

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size or 1,
            vllm=self.bits in (4, 8),
            llama_cpp=self.bits in (4, 8) and self.group_size == 32 and self.symmetric,
            packed_on_cpu=self.on_int8_kernel or tile_layout() is not None,
            resident_bits=4.0 if self.bits <= 4 else 8.0,
        )

    @property
    def on_int8_kernel(self) -> bool:
        """Symmetric rows of more than 4 bits: one byte per weight, any shape."""
        return self.bits > 4 and self.symmetric and self.group_size == 0

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        out_features, in_features = shape
        if out_features < 1 or in_features < 1:
            raise FormatError(
                f"{self.name}: {where}: a weight of {out_features} x {in_features} is empty"
            )
        if self.group_size and in_features % self.group_size:
            fitting = [
                type(self)(self.bits, size, self.symmetric).name
                for size in GROUP_SIZES
                if size == 0 or in_features % size == 0
            ]
            raise FormatError(
                f"{self.name}: {where}: group size {self.group_size} does not divide"
                f" {in_features} inputs; use {' or '.join(fitting)}"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        out_features, in_features = shape
        groups = self.groups(in_features)
        zero_points = 0 if self.symmetric else packed_bytes(self.bits, groups, out_features)
        scales = out_features * groups * SCALE_DTYPE.itemsize
        return packed_bytes(self.bits, out_features, in_features) + scales + zero_points

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        group = kernel_group(self.group_size, shape[1])
        if torch.device(device).type != "cpu":
            return self.stored_bytes(shape)
        if self.on_int8_kernel:
            return int8_matrix_bytes(shape)
        if tile_layout() is None or group is None:
            return self.stored_bytes(shape)
        return int4_matrix_bytes(shape, bits=self.bits, group=group)

    def groups(self, in_features: int) -> int:
        """Groups per row, G."""
        return in_features // self.group_size if self.group_size else 1

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
        try:
            return cls(spec["bits"], spec["group_size"], bool(spec["symmetric"]))
        except KeyError as missing:
            raise FormatError(f"format spec {dict(spec)} lacks {missing}") from None

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

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> IntLinear:
        if not isinstance(solution, GridSolution) or not isinstance(solution.grid, AffineGrid):
            raise TypeError(f"{self.name} stores codes of an AffineGrid, not {solution}")
        codes_OI, grid = solution.codes_OI, solution.grid
        zero_point_GO = grid.zero_point.to(torch.uint8).t().contiguous()
        return IntLinear(
            self,
            (codes_OI.shape[0], codes_OI.shape[1]),
            weight=pack_codes(codes_OI, self.bits),
            scale=grid.scale.to(SCALE_DTYPE, copy=True),
            zero_point=None if self.symmetric else pack_codes(zero_point_GO, self.bits),
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> IntLinear:
        out_features, in_features = shape
        groups = self.groups(in_features)
        codes = packed_bytes(self.bits, out_features, in_features)
        zero_points = packed_bytes(self.bits, groups, out_features)
        return IntLinear(
            self,
            shape,
            weight=torch.empty(codes, dtype=torch.uint8, device=device),
            scale=torch.empty((out_features, groups), dtype=SCALE_DTYPE, device=device),
            zero_point=None
            if self.symmetric
            else torch.empty(zero_points, dtype=torch.uint8, device=device),
            bias=torch.empty(out_features, dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )

    @classmethod
    def _all(cls) -> Iterator[Self]:
        for bits in range(2, 9):
            for size in GROUP_SIZES:
                for symmetric in (False, True):
                    yield cls(bits, size, symmetric)


class IntLinear(FormatLinear):
    """The packed module.  Prepared, the buffers are None and ``_matrix`` holds the only copy."""

    format: IntFormat  # narrower than the base's
    weight: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(
        self,
        format: IntFormat,
        shape: tuple[int, int],
        *,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(format, shape, bias=bias, dtype=dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self._matrix: Int4Matrix | Int8Matrix | None = None

    # -- states

    @property
    def weight_names(self) -> tuple[str, ...]:
        return ("weight", "scale") if self.format.symmetric else ("weight", "scale", "zero_point")

    def prepare(self) -> Self:
        """A module whose scales are trained stays portable, as does one that no kernel takes."""
        if self._matrix is None and self._packs() and not self._scale().requires_grad:
            with torch.inference_mode(False), torch.no_grad():
                self._matrix = self._packed_matrix()
            self.weight = self.scale = self.zero_point = None
        return self

    def restore(self) -> Self:
        if self._matrix is not None:
            with torch.inference_mode(False), torch.no_grad():
                tensors = self.stored_weight()
            self._matrix = None
            self.weight, self.scale = tensors["weight"], tensors["scale"]
            self.zero_point = tensors.get("zero_point")
        return self

    def stored_weight(self) -> dict[str, Tensor]:
        bits, matrix = self.format.bits, self._matrix
        if matrix is None:
            held = {"weight": self.weight, "scale": self.scale, "zero_point": self.zero_point}
            return {name: tensor.detach() for name, tensor in held.items() if tensor is not None}
        groups = self.format.groups(self.in_features)
        tensors = {
            "weight": pack_codes(matrix.codes(), bits),
            "scale": matrix.scale()[:, :groups].contiguous(),
        }
        if not self.format.symmetric:
            zero_point = matrix.zero_point()[:, :groups].to(torch.uint8)
            tensors["zero_point"] = pack_codes(zero_point.t().contiguous(), bits)
        return tensors

    @property
    def kernel(self) -> str:
        if not self._packs():
            return "dequantize"
        if self.format.on_int8_kernel:
            return "int8"
        return "int4" if self.format.bits <= 4 else "int4 x 2"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.weight is None else self.weight.device

    @property
    def resident_bytes(self) -> int:
        held = [*self.parameters(), *self.buffers()]
        matrix = 0 if self._matrix is None else self._matrix.nbytes
        return sum(t.numel() * t.element_size() for t in held) + matrix

    # -- products

    def product(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self.format.name}: {x.shape[-1]} inputs given, {self.in_features} needed"
            )
        if torch.is_grad_enabled():
            if self.scale is not None and self.scale.requires_grad:
                return torch.nn.functional.linear(x, self.differentiable_weight().to(x.dtype))
            if x.requires_grad:
                return frozen_product(x, self._multiply, self.dequantize)
        return self._multiply(x)

    def differentiable_weight(self) -> Tensor:
        """Gradients reach the scale in the portable state alone; see ``restore``."""
        if self._matrix is not None:
            return self._matrix.dequantize()
        groups = self.format.groups(self.in_features)
        codes = self._codes(slice(None)).view(self.out_features, groups, -1).float()
        centered = codes - self._zero_points(slice(None)).unsqueeze(-1)
        return (centered * self._scale().float().unsqueeze(-1)).view(self.shape)

    def stored_codes(self) -> Mapping[str, StoredCodes]:
        codes_OI, levels = self._codes(slice(None)), 1 << self.format.bits
        pack = partial(pack_codes, bits=self.format.bits)
        return {"weight": StoredCodes(codes_OI=codes_OI, levels=levels, pack=pack)}

    def dequantize(self) -> Tensor:
        if self._matrix is not None:
            return self._matrix.dequantize()
        return torch.cat([chunk for _, chunk in self._chunks()])

    def rows(self, index: Tensor) -> Tensor:
        if self._matrix is not None:
            return self._matrix.rows(index).to(self.dtype)
        return self._dequantized(index).to(self.dtype)

    # -- details

    def _multiply(self, x: Tensor) -> Tensor:
        matrix = self.prepare()._matrix
        x_TI = x.reshape(-1, self.in_features).contiguous()
        if matrix is None:
            y_TO = x_TI.new_empty((x_TI.shape[0], self.out_features))
            for rows, W_RI in self._chunks():
                torch.mm(x_TI, W_RI.to(x.dtype).t(), out=y_TO[:, rows])
        elif x.dtype == torch.bfloat16 and 0 < x_TI.shape[0] < matrix.many_tokens:
            y_TO = matrix.product(x_TI)
        else:
            y_TO = matrix.dense_product(x_TI)
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def _packs(self) -> bool:
        """Whether this machine has a kernel for this weight where it is."""
        if self.device.type != "cpu":
            return False
        if self.format.on_int8_kernel:
            return True
        return tile_layout() is not None and self._group() is not None

    def _group(self) -> int | None:
        return kernel_group(self.format.group_size, self.in_features)

    def _packed_matrix(self) -> Int4Matrix | Int8Matrix:
        bits, scale, codes = self.format.bits, self._scale(), self._codes(slice(None))
        if self.format.on_int8_kernel:
            return Int8Matrix.pack(codes, scale[:, 0], bits=bits)
        group = self._group() or self.in_features
        shape = (self.out_features, self.in_features // group)
        zero_points = self._zero_points(slice(None))
        return Int4Matrix.pack(
            codes, scale.expand(shape), zero_points.expand(shape), bits=bits, group=group
        )

    def _scale(self) -> Tensor:
        if self.scale is None:
            raise RuntimeError("the scale is packed; call restore() first")
        return self.scale

    def _codes(self, rows: slice | Tensor) -> Tensor:
        """uint8 [rows, I]; as they were given while they are tuned"""
        if self.weight is not None and self.weight.is_floating_point():
            return self.weight[rows]
        if self.weight is None:
            raise RuntimeError("the codes are packed; call restore() first")
        chosen = self.weight.view(self.out_features, -1)[rows]
        bits = self.format.bits
        return unpack_codes(chosen.reshape(-1), bits, chosen.shape[0], self.in_features)

    def _zero_points(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, G], or [1, 1]"""
        if self.format.symmetric:
            return torch.full((1, 1), 1 << (self.format.bits - 1), device=self.device).float()
        if self.zero_point is None:
            raise RuntimeError("the zero points are packed; call restore() first")
        groups = self.format.groups(self.in_features)
        codes_GO = unpack_codes(self.zero_point, self.format.bits, groups, self.out_features)
        return codes_GO.t()[rows].float()

    def _dequantized(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, I]"""
        codes = self._codes(rows)
        scale = self._scale()[rows].detach().float().unsqueeze(-1)
        grouped = codes.view(codes.shape[0], scale.shape[1], -1).float()
        return grouped.sub_(self._zero_points(rows).unsqueeze(-1)).mul_(scale).view(codes.shape)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, CHUNK_WEIGHTS // self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            yield rows, self._dequantized(rows)


FORMAT = IntFormat
