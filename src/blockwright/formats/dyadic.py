"""dyadic: a linear in integers: 8-bit inputs, rows of 4 or 8 bits, outputs by multiply and shift.

Paper:   Yao, Dong, Zheng, Gholami, Yu, Tan, Wang, Huang, Wang, Mahoney, Keutzer, "HAWQ-V3: Dyadic
         Neural Network Quantization", ICML 2021.
Idea:    q_y = (q_x W_q^T m + 2^(c-1)) >> c: with one scale for all inputs, one per row and one for
         all outputs, what is left between them is a number m / 2^c, so that a processor without
         floating point can run it.  One scale for all inputs is what makes it coarse: where a few
         inputs are huge, the others share few steps.

Names:   dyadic8, dyadic4: bits of the weight.
Stored:  weight      uint8, flat, so that plain loading raises: dense codes [O, I]
         multiplier  int32 [O]
         shift       int8 [O]
         scales      fp32 [2]: of the inputs, of the outputs
         bias        as it was
Shapes:  O out features, I in features, T tokens.
Units:   bits per weight = bits + 40 / I + 64 / (O I).
Kernels: bf16 where PyTorch multiplies int8 matrices: inputs rounded to 8 bits by the fixed scale,
         and clipped; an exact integer product; multiply and shift in 64 bits; the bias added in
         units of the outputs.  8 bits are resident (dyadic4: beside its 4).  This rounding of the
         inputs and outputs is not in the weight: dequantized, differentiable and fp32 products do
         not have it, nor do qualities measured in fp32.  Everything else: dequantized in chunks.
Differs: 1. Outputs have 16 bits, for norms, softmax and activations stay in floating point (the
            paper's next layer is another integer convolution), and no output is cut off that
            calibration can have seen.
         2. The bias joins behind the shift, not in the accumulator: no other range has to hold it.
         3. In PyTorch the integers become bfloat16 at the end.
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
from blockwright.formats._linear import ChunkedLinear, frozen_product
from blockwright.formats._spec import check_not_empty, check_version, spec_field
from blockwright.formats.int import IntFormat
from blockwright.numerics.dyadic import requantize
from blockwright.numerics.int8_product import (
    TOP,
    integer_product,
    multiplies_integers,
)
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.types import DyadicFormat, DyadicSolution, FormatLimits, SiteKind, Solution

NAME = re.compile(r"dyadic(?P<bits>[48])")
MOST_INPUTS = (2**31 - 1) // (TOP * (TOP + 1))
"""More inputs could pass int32: a weight may be -128."""
ROW_BYTES, SCALE_BYTES = 5, 8
"""Of a multiplier and its shift; of both scales."""


@dataclass(frozen=True)
class DyadicIntFormat(DyadicFormat):
    """``dyadic<bits>``."""

    bits: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "hawq"
    input_top: ClassVar[int] = TOP
    output_top: ClassVar[int] = (1 << 15) - 1

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise FormatError(f"dyadic format of {self.bits} bits: allowed are 4 and 8")

    @property
    def name(self) -> str:
        return f"dyadic{self.bits}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'dyadic8'? (dyadic8 or dyadic4)"
            )
        return cls(int(match["bits"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("dyadic8", "dyadic4")

    @property
    def rows(self) -> IntFormat:
        return IntFormat(self.bits, 0, symmetric=True)

    @property
    def center(self) -> int:
        """Zero point of the stored codes."""
        return 1 << (self.bits - 1)

    @property
    def limits(self) -> FormatLimits:
        on_integers = multiplies_integers()
        beside = 8.0 if on_integers and self.bits == 4 else 0.0
        return FormatLimits(packed_on_cpu=on_integers, resident_bits=self.bits + beside)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)
        in_features = shape[1]
        if in_features > MOST_INPUTS:
            raise FormatError(
                f"{self.name}: {where}: sums of {in_features} products of 8 bits can pass 32 bits;"
                f" at most {MOST_INPUTS} inputs, or use int{self.bits}"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return packed_bytes(self.bits, *shape) + ROW_BYTES * shape[0] + SCALE_BYTES

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        beside = multiplies_integers(torch.device(device).type)
        return self.stored_bytes(shape) + (shape[0] * shape[1] if beside else 0)

    def spec(self) -> dict[str, Any]:
        return {"format": "dyadic", "version": self.version, "bits": self.bits}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "bits"))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> DyadicLinear:
        if not isinstance(solution, DyadicSolution):
            raise TypeError(f"{self.name} stores a DyadicSolution, not {solution}")
        codes_OI = (solution.codes_OI.short() + self.center).to(torch.uint8)
        return DyadicLinear(
            self,
            (codes_OI.shape[0], codes_OI.shape[1]),
            weight=pack_codes(codes_OI, self.bits),
            multiplier=solution.multiplier_O.clone(),
            shift=solution.shift_O.clone(),
            scales=solution.scales.clone(),
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> DyadicLinear:
        out_features, in_features = shape
        codes = packed_bytes(self.bits, out_features, in_features)
        return DyadicLinear(
            self,
            shape,
            weight=torch.empty(codes, dtype=torch.uint8, device=device),
            multiplier=torch.empty(out_features, dtype=torch.int32, device=device),
            shift=torch.empty(out_features, dtype=torch.int8, device=device),
            scales=torch.empty(2, dtype=torch.float32, device=device),
            bias=torch.empty(out_features, dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class DyadicLinear(ChunkedLinear):
    """The packed module.  Prepared, ``_codes`` [O, I] is what the integer kernel reads."""

    format: DyadicIntFormat  # narrower than the base's
    weight: Tensor
    multiplier: Tensor
    shift: Tensor
    scales: Tensor
    _codes: Tensor | None = None

    # -- states

    def prepare(self) -> Self:
        if self._codes is None and multiplies_integers(self.device.type):
            with torch.inference_mode(False), torch.no_grad():
                self._codes = self._signed(slice(None)).to(torch.int8)
        return self

    def restore(self) -> Self:
        self._codes = None
        return self

    @property
    def kernel(self) -> str:
        return "int8 x int8" if multiplies_integers(self.device.type) else "dequantize"

    @property
    def resident_bytes(self) -> int:
        return super().resident_bytes + (0 if self._codes is None else self._codes.nbytes)

    # -- products

    def forward(self, x: Tensor) -> Tensor:
        if not self._in_integers(x) or self.bias is None:
            return super().forward(x)
        output_scale = self.scales[1].float()
        q_TO = self._integer_outputs(x) + (self.bias.float() / output_scale).round().long()
        return (q_TO.float() * output_scale).to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return frozen_product(x, self._multiply, self.dequantize)
        return self._multiply(x)

    def differentiable_weight(self) -> Tensor:
        """Nothing in it can be trained: all is integers, but for two units."""
        return self.dequantize()

    # -- details

    def _in_integers(self, x: Tensor) -> bool:
        """Whether the integer path takes these inputs."""
        asked = torch.is_grad_enabled() and x.requires_grad
        fits = x.shape[-1] == self.in_features and x.numel() > 0 and x.dtype == torch.bfloat16
        return fits and not asked and multiplies_integers(x.device.type)

    def _integer_outputs(self, x: Tensor) -> Tensor:
        """int64 [..., O], in units of the outputs: integers all the way."""
        x_TI = x.reshape(-1, self.in_features).float()
        top = self.format.input_top
        q_TI = torch.div(x_TI, self.scales[0]).round_().clamp_(-top, top).to(torch.int8)
        codes_OI = self.prepare()._codes
        assert codes_OI is not None
        sums_TO = integer_product(q_TI, codes_OI)
        q_TO = requantize(sums_TO, self.multiplier, self.shift)
        top = self.format.output_top
        return q_TO.clamp_(-top, top).view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: Tensor) -> Tensor:
        if self._in_integers(x.detach()):
            return (self._integer_outputs(x).float() * self.scales[1].float()).to(x.dtype)
        x_TI = x.reshape(-1, self.in_features)
        return self._chunked_product(x_TI).reshape(*x.shape[:-1], self.out_features)

    def _signed(self, rows: slice | Tensor) -> Tensor:
        """int16 [rows, I]"""
        chosen = self.weight.view(self.out_features, -1)[rows]
        codes = unpack_codes(
            chosen.reshape(-1), self.format.bits, chosen.shape[0], self.in_features
        )
        return codes.short() - self.format.center

    def _rows(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, I]"""
        return DyadicSolution(
            codes_OI=self._signed(rows),
            multiplier_O=self.multiplier[rows],
            shift_O=self.shift[rows],
            scales=self.scales,
        ).weight()


FORMAT = DyadicIntFormat
