"""df: bfloat16 without loss, the exponents as Huffman codes.

Paper:   Zhang et al., "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU
         Inference via Dynamic-Length Float" (DFloat11), 2025.
Idea:    The 8 exponent bits of trained weights carry about 2.6 bits: few magnitudes are common.
         Code them, keep the sign and the 7 mantissa bits, which are noise, as they are.

Names:   df11.
Stored:  weight      uint8, flat, so that plain loading raises: see numerics/dfloat11.py; a weight
                     that no code shrinks as it is, in 2 O I bytes
         bias        as it was
Shapes:  O out features, I in features, N = O I.
Units:   bits per weight = 8 + mean code length + 11.5 / 256 + the code itself / N: 10.7 where
         weights are normal.
Kernels: decoded once, when loaded, into bfloat16: smaller on disk and on the way, not in memory,
         and exactly as fast as bfloat16.
Differs: one code per tensor, of at most 8 bits with an escape, and lanes that begin at bytes in
         place of 5-bit gaps: numerics/huffman.py says why.
Raises:  CandidateError for another name, FormatError for an empty shape, a size that no weight of
         the shape has, or a newer version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._linear import FormatLinear
from blockwright.formats._spec import check_not_empty, check_version, spec_field
from blockwright.numerics.dfloat11 import from_bytes, to_bytes
from blockwright.types import DenseSolution, FormatLimits, LosslessFormat, SiteKind, Solution


@dataclass(frozen=True)
class DfFormat(LosslessFormat):
    """``df11``"""

    coded_bytes: int = 0
    """Bytes of one packed weight; 0 in the format by name, which fits every weight: 2 O I."""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR, SiteKind.TABLE})
    default_method: ClassVar[str | None] = "exact"

    @property
    def name(self) -> str:
        return "df11"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name != "df11":
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'df11'? It takes no parameters"
            )
        return cls()

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("df11",)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(packed_on_cpu=True)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return self.coded_bytes or self.resident_bytes(shape)

    def least_bytes(self, shape: tuple[int, int]) -> int:
        """One exponent alone: a bit per weight, beside sign and mantissa."""
        weights = shape[0] * shape[1]
        return self.coded_bytes or min(weights + weights // 8, self.resident_bytes(shape))

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        return shape[0] * shape[1] * torch.bfloat16.itemsize

    def spec(self) -> dict[str, Any]:
        return {"format": "df", "version": self.version, "bytes": self.coded_bytes}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(int(spec_field(spec, "bytes")))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> DfLinear:
        if not isinstance(solution, DenseSolution) or solution.values_OI.dtype != torch.bfloat16:
            raise TypeError(f"df11 stores bfloat16 values, not {solution}")
        O, I = solution.values_OI.shape  # noqa: E741
        weight = to_bytes(solution.values_OI)
        return DfLinear(DfFormat(len(weight)), (O, I), weight=weight, bias=bias_O, dtype=dtype)

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> DfLinear:
        weight = torch.empty(self.stored_bytes(shape), dtype=torch.uint8, device=device)
        bias_O = torch.empty(shape[0], dtype=dtype, device=device) if bias else None
        return DfLinear(self, shape, weight=weight, bias=bias_O, dtype=dtype)


class DfLinear(FormatLinear):
    """The packed module.  Prepared, ``weight`` is None and ``values`` holds the only copy."""

    format: DfFormat  # narrower than the base's
    weight: Tensor | None
    values: Tensor | None

    def __init__(
        self,
        format: DfFormat,
        shape: tuple[int, int],
        *,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(format, shape, bias=bias, dtype=dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("values", None)

    @property
    def weight_names(self) -> tuple[str, ...]:
        return ("weight",)

    def stored_weight(self) -> dict[str, Tensor]:
        if self.values is not None:
            return {"weight": to_bytes(self.values)}
        return {} if self.weight is None else {"weight": self.weight.detach()}

    def prepare(self) -> Self:
        if self.values is None:
            self.values, self.weight = self.exact(), None
        return self

    def restore(self) -> Self:
        if self.values is not None:
            with torch.inference_mode(False), torch.no_grad():
                self.weight, self.values = to_bytes(self.values), None
        return self

    def leave_kernel(self) -> None:
        """Both states can be moved."""

    @property
    def kernel(self) -> str:
        return "matmul"

    @property
    def device(self) -> torch.device:
        held = self.values if self.weight is None else self.weight
        return torch.device("cpu") if held is None else held.device

    def forward(self, x: Tensor) -> Tensor:
        """One product with the bias inside it: bit for bit what the original linear gives."""
        return self._linear(x, self.prepare().exact().to(x.dtype))

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.prepare().exact().to(x.dtype))

    def exact(self) -> Tensor:
        """The weight as it was, bfloat16 [O, I]."""
        if self.values is not None:
            return self.values
        if self.weight is None:
            raise RuntimeError("df11: nothing is stored")
        try:
            with torch.inference_mode(False), torch.no_grad():
                return from_bytes(self.weight, self.shape.numel()).view(self.shape)
        except ValueError as error:
            raise FormatError(f"df11: no weight of {list(self.shape)}: {error}") from None

    def differentiable_weight(self) -> Tensor:
        return self.exact().float()

    def dequantize(self) -> Tensor:
        return self.exact().float()

    def rows(self, index: Tensor) -> Tensor:
        return self.exact()[index].to(self.dtype)


FORMAT = DfFormat
