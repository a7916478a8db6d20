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
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError, NumericalError
from blockwright.formats._linear import FormatLinear
from blockwright.formats._spec import check_version
from blockwright.formats.int import IntFormat, IntLinear
from blockwright.numerics.block_floating_point import (
    EXPONENT_DTYPE,
    fit_exponents,
    search_exponents,
    step_sizes,
)
from blockwright.numerics.finite import all_finite
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.packing import pack_codes, packed_bytes
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import FormatLimits, GridFormat, GridSolution, SiteKind, Solution

GROUP_SIZES = (32, 64, 128)
NAME = re.compile(r"bfp(?P<bits>[4-8])-b(?P<group>32|64|128)")


@dataclass(frozen=True)
class BfpFormat(GridFormat):
    """``bfp{bits}-b{group_size}``."""

    bits: int
    group_size: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR, SiteKind.TABLE})
    default_method: ClassVar[str | None] = "rtn"

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
    def integers(self) -> IntFormat:
        """The int format whose kernels multiply it."""
        return IntFormat(self.bits, self.group_size, symmetric=True)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size,
            packed_on_cpu=self.integers.limits.packed_on_cpu,
            resident_bits=self.integers.limits.resident_bits,
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        out_features, in_features = shape
        if out_features < 1 or in_features < 1:
            raise FormatError(
                f"{self.name}: {where}: a weight of {out_features} x {in_features} is empty"
            )
        if in_features % self.group_size:
            fitting = [size for size in GROUP_SIZES if in_features % size == 0]
            names = [type(self)(self.bits, size).name for size in fitting] or [f"int{self.bits}"]
            raise FormatError(
                f"{self.name}: {where}: group size {self.group_size} does not divide"
                f" {in_features} inputs; use {' or '.join(names)}"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        exponents = shape[0] * (shape[1] // self.group_size)
        return packed_bytes(self.bits, *shape) + exponents * EXPONENT_DTYPE.itemsize

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        return self.integers.resident_bytes(shape, device)

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
        try:
            return cls(spec["bits"], spec["group_size"])
        except KeyError as missing:
            raise FormatError(f"format spec {dict(spec)} lacks {missing}") from None

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
        zero_point = torch.full_like(scale, 1 << (self.bits - 1))
        return AffineGrid(scale, zero_point, 1 << self.bits, self.group_size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> BfpLinear:
        if not isinstance(solution, GridSolution) or not isinstance(solution.grid, AffineGrid):
            raise TypeError(f"{self.name} stores codes of an AffineGrid, not {solution}")
        scale = solution.grid.scale
        exponent = exponents_of(scale)
        if not torch.equal(step_sizes(exponent), scale.float()):
            raise NumericalError(f"{self.name} stores powers of two; some scales are none")
        O, I = solution.codes_OI.shape  # noqa: E741
        weight = pack_codes(solution.codes_OI, self.bits)
        return BfpLinear(self, (O, I), weight=weight, exponent=exponent, bias=bias_O, dtype=dtype)

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> BfpLinear:
        groups = shape[1] // self.group_size
        codes = packed_bytes(self.bits, *shape)
        return BfpLinear(
            self,
            shape,
            weight=torch.empty(codes, dtype=torch.uint8, device=device),
            exponent=torch.empty((shape[0], groups), dtype=EXPONENT_DTYPE, device=device),
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


def exponents_of(scale: Tensor) -> Tensor:
    """e of scales 2^e."""
    return (torch.frexp(scale.float())[1] - 1).to(EXPONENT_DTYPE)


class BfpLinear(FormatLinear):
    """The packed module.  Prepared, an int module in its kernel's layout holds the only copy."""

    format: BfpFormat  # narrower than the base's
    weight: Tensor | None
    exponent: Tensor | None

    def __init__(
        self,
        format: BfpFormat,
        shape: tuple[int, int],
        *,
        weight: Tensor,
        exponent: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(format, shape, bias=bias, dtype=dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("exponent", exponent)
        self._prepared: list[IntLinear] = []  # in a list, because it is no part of the state

    @property
    def weight_names(self) -> tuple[str, ...]:
        return ("weight", "exponent")

    def stored_weight(self) -> dict[str, Tensor]:
        if self._prepared:
            tensors = self._prepared[0].stored_weight()
            return {"weight": tensors["weight"], "exponent": exponents_of(tensors["scale"])}
        held = {"weight": self.weight, "exponent": self.exponent}
        return {name: tensor.detach() for name, tensor in held.items() if tensor is not None}

    def prepare(self) -> Self:
        if not self._prepared:
            with torch.inference_mode(False), torch.no_grad():
                self._prepared = [self._integers().prepare()]
            self.weight = self.exponent = None
        return self

    def restore(self) -> Self:
        if self._prepared:
            with torch.inference_mode(False), torch.no_grad():
                tensors = self.stored_weight()
            self.weight, self.exponent = tensors["weight"], tensors["exponent"]
            self._prepared = []
        return self

    @property
    def kernel(self) -> str:
        return self._integers().kernel

    @property
    def device(self) -> torch.device:
        return self._integers().device

    @property
    def resident_bytes(self) -> int:
        held = [*self.parameters(), *self.buffers()]
        prepared = sum(module.resident_bytes for module in self._prepared)
        return sum(t.numel() * t.element_size() for t in held) + prepared

    def product(self, x: Tensor) -> Tensor:
        return self.prepare()._integers().product(x)

    def differentiable_weight(self) -> Tensor:
        return self._integers().dequantize()

    def dequantize(self) -> Tensor:
        return self._integers().dequantize()

    def rows(self, index: Tensor) -> Tensor:
        return self._integers().rows(index).to(self.dtype)

    def _integers(self) -> IntLinear:
        """The same codes as an int module."""
        if self._prepared:
            return self._prepared[0]
        if self.weight is None or self.exponent is None:
            raise RuntimeError(f"{self.format.name}: nothing is stored")
        return IntLinear(
            self.format.integers,
            (self.out_features, self.in_features),
            weight=self.weight,
            scale=step_sizes(self.exponent).to(SCALE_DTYPE),
            zero_point=None,
            bias=None,
            dtype=self.dtype,
        )


FORMAT = BfpFormat
