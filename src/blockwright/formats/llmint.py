"""llmint: 8-bit rows that multiply 8-bit inputs, with a few input columns kept in 16 bits.

Paper:   Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8(): 8-bit Matrix Multiplication for
         Transformers at Scale", NeurIPS 2022.
Idea:    A few input features are huge in every token.  With one 8-bit scale per token they leave
         no steps to the others; so they are multiplied apart, in 16 bits, and all else as integers.

Names:   llmint8-p1: 1% of the input columns kept (at least one); p0 (none) to p9.
Stored:  weight      int8, flat, so that plain loading raises: codes of [O, I], 0 in kept columns
         scale       bfloat16 [O, 1]
         columns     int32 [K], rising
         outliers    bfloat16, flat [O K]: the kept columns
         bias        as it was
Shapes:  O out features, I in features, T tokens, K = ceil(percent I / 100).
Units:   bits per weight = 8 + 16 / I + 16 K / I, and 32 K once.
Kernels: bf16 where PyTorch multiplies int8 matrices: inputs rounded to 8 bits per token, an exact
         integer product, and a bf16 one of the kept columns.  This rounding of the inputs is not in
         the weight: dequantized, differentiable and fp32 products do not have it, nor do qualities
         measured in fp32.  Everything else: dequantized in chunks, then an ordinary matmul.
Differs: 1. The columns are chosen once, from calibration (the paper: in every call, those of which
         an input is above 6), and their number is fixed, so that bytes are known beforehand.
         2. Row scales in bfloat16.
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
from blockwright.formats._linear import ChunkedLinear, frozen_product
from blockwright.formats._spec import check_not_empty, check_version, spec_field
from blockwright.formats.int import IntFormat
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.int8_product import (
    MOST_INPUTS,
    integer_product,
    multiplies_integers,
    round_tokens,
)
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import (
    FormatLimits,
    OutlierFormat,
    OutlierSolution,
    SiteKind,
    Solution,
)

NAME = re.compile(r"llmint8-p(?P<percent>[0-9])")
CENTER = 128
"""The zero point of the codes of a solution."""
OUTLIER_DTYPE, COLUMN_DTYPE = torch.bfloat16, torch.int32


@dataclass(frozen=True)
class LlmIntFormat(OutlierFormat):
    """``llmint8-p<percent>``."""

    percent: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "llmint"

    def __post_init__(self) -> None:
        if self.percent not in range(10):
            raise FormatError(
                f"llmint8 format with {self.percent}% of the inputs kept: allowed are 0 to 9"
            )

    @property
    def name(self) -> str:
        return f"llmint8-p{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'llmint8-p1'? (llmint8-p0 to llmint8-p9:"
                " percent of the input columns that stay in 16 bits)"
            )
        return cls(int(match["percent"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("llmint8-p0", "llmint8-p5")

    @property
    def rest(self) -> IntFormat:
        return IntFormat(8, 0, symmetric=True)

    def kept(self, in_features: int) -> int:
        return -(-self.percent * in_features // 100)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            packed_on_cpu=multiplies_integers(), resident_bits=8.0 + 0.16 * self.percent
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)
        in_features = shape[1]
        if in_features > MOST_INPUTS:
            raise FormatError(
                f"{self.name}: {where}: sums of {in_features} products of 8 bits can pass 32 bits;"
                f" at most {MOST_INPUTS} inputs, or use int8"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        out_features, in_features = shape
        kept = self.kept(in_features)
        per_row = in_features + SCALE_DTYPE.itemsize + kept * OUTLIER_DTYPE.itemsize
        return out_features * per_row + kept * COLUMN_DTYPE.itemsize

    def spec(self) -> dict[str, Any]:
        return {"format": "llmint", "version": self.version, "percent": self.percent}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "percent"))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> LlmIntLinear:
        if not isinstance(solution, OutlierSolution):
            raise TypeError(f"{self.name} stores an OutlierSolution, not {solution}")
        codes_OI, grid = solution.rest.codes_OI, solution.rest.grid
        if not isinstance(grid, AffineGrid) or (grid.zero_point != CENTER).any():
            raise TypeError(f"{self.name} stores symmetric 8-bit rows, not {grid}")
        return LlmIntLinear(
            self,
            (codes_OI.shape[0], codes_OI.shape[1]),
            weight=codes_OI.contiguous().sub(CENTER).view(torch.int8).flatten(),
            scale=grid.scale.to(SCALE_DTYPE, copy=True),
            columns=solution.columns_K.to(COLUMN_DTYPE),
            outliers=solution.outliers.values_OI.flatten().clone(),
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> LlmIntLinear:
        out_features, in_features = shape
        kept = self.kept(in_features)
        return LlmIntLinear(
            self,
            shape,
            weight=torch.empty(out_features * in_features, dtype=torch.int8, device=device),
            scale=torch.empty((out_features, 1), dtype=SCALE_DTYPE, device=device),
            columns=torch.empty(kept, dtype=COLUMN_DTYPE, device=device),
            outliers=torch.empty(out_features * kept, dtype=OUTLIER_DTYPE, device=device),
            bias=torch.empty(out_features, dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class LlmIntLinear(ChunkedLinear):
    """The packed module; the stored tensors are what the kernel reads."""

    format: LlmIntFormat  # narrower than the base's
    weight: Tensor
    scale: Tensor
    columns: Tensor
    outliers: Tensor

    # -- states

    def prepare(self) -> Self:
        return self

    def restore(self) -> Self:
        return self

    @property
    def kernel(self) -> str:
        return "int8 x int8" if multiplies_integers(self.device.type) else "dequantize"

    # -- products

    def product(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        if torch.is_grad_enabled():
            if self.scale.requires_grad or self.outliers.requires_grad:
                return F.linear(x, self.differentiable_weight().to(x.dtype))
            if x.requires_grad:
                return frozen_product(x, self._multiply, self.dequantize)
        return self._multiply(x)

    def differentiable_weight(self) -> Tensor:
        rest = self.weight.view(self.shape).float() * self.scale.float()
        kept = self.outliers.view(self.out_features, -1).float()
        return rest.index_copy(1, self.columns.long(), kept)

    # -- details

    def _multiply(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        if x.dtype == torch.bfloat16 and len(x_TI) and multiplies_integers(x.device.type):
            y_TO = self._integer_product(x_TI)
        else:
            y_TO = self._chunked_product(x_TI)
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def _integer_product(self, x_TI: Tensor) -> Tensor:
        """Kept columns in bf16, the others as integers."""
        columns = self.columns.long()
        codes_TI, scale_T1 = round_tokens(x_TI.index_fill(1, columns, 0.0))
        sums_TO = integer_product(codes_TI, self.weight.view(self.shape))
        y_TO = sums_TO.float().mul_(scale_T1).mul_(self.scale.float().t())
        if len(columns):
            kept_OK = self.outliers.view(self.out_features, -1)
            y_TO.add_(x_TI[:, columns] @ kept_OK.t())
        return y_TO.to(x_TI.dtype)

    def _rows(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, I]"""
        rest = self.weight.view(self.shape)[rows].float().mul_(self.scale.detach()[rows].float())
        kept = self.outliers.detach().view(self.out_features, -1)[rows].float()
        return rest.index_copy_(1, self.columns.long(), kept)


FORMAT = LlmIntFormat
