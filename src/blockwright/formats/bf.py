"""bf: bfloat16, the 16-bit floating-point type of most checkpoints.

Paper:   none; the type is Google Brain's.
Idea:    Half the bytes of an fp32 checkpoint at three significant digits, and what the parts of
         other formats are stored as unless a candidate says otherwise (``rank-p50+int8``).

Names:   bf16.
Stored:  weight      bfloat16, flat [O I], so that plain loading raises
         bias        as it was
Shapes:  O out features, I in features.
Units:   16 bits per weight.
Kernels: the ordinary matmul; activations of another dtype: converted once per call.
Raises:  CandidateError for another name, FormatError for an empty shape or a newer version,
         NumericalError for values beyond bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.formats._linear import BufferedLinear
from blockwright.formats._spec import check_not_empty, check_version
from blockwright.numerics.finite import all_finite
from blockwright.types import DenseSolution, FormatLimits, SiteKind, Solution, ValueFormat


@dataclass(frozen=True)
class BfFormat(ValueFormat):
    """``bf16``"""

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR, SiteKind.TABLE})
    default_method: ClassVar[str | None] = "rtn"

    @property
    def name(self) -> str:
        return "bf16"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name != "bf16":
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'bf16'? It takes no parameters"
            )
        return cls()

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("bf16",)

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(vllm=True, llama_cpp=True, packed_on_cpu=True)

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] * torch.bfloat16.itemsize

    def spec(self) -> dict[str, Any]:
        return {"format": "bf", "version": self.version}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls()

    def nearest(self, W_OI: Tensor) -> DenseSolution:
        values = W_OI.to(torch.bfloat16)
        if not all_finite(values):
            raise NumericalError("a weight is not finite, or too large for bfloat16")
        return DenseSolution(values_OI=values)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> BfLinear:
        if not isinstance(solution, DenseSolution) or solution.values_OI.dtype != torch.bfloat16:
            raise TypeError(f"bf16 stores bfloat16 values, not {solution}")
        O, I = solution.values_OI.shape  # noqa: E741
        weight = solution.values_OI.flatten().clone()
        return BfLinear(self, (O, I), weight=weight, bias=bias_O, dtype=dtype)

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> BfLinear:
        weight = torch.empty(shape[0] * shape[1], dtype=torch.bfloat16, device=device)
        bias_O = torch.empty(shape[0], dtype=dtype, device=device) if bias else None
        return BfLinear(self, shape, weight=weight, bias=bias_O, dtype=dtype)


class BfLinear(BufferedLinear):
    """The packed module: it has one state only, which is portable and multiplies."""

    weight: Tensor

    def prepare(self) -> Self:
        return self

    def restore(self) -> Self:
        return self

    @property
    def kernel(self) -> str:
        return "matmul"

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.view(self.shape).to(x.dtype))

    def differentiable_weight(self) -> Tensor:
        return self.weight.view(self.shape).float()

    def dequantize(self) -> Tensor:
        return self.differentiable_weight().detach()

    def rows(self, index: Tensor) -> Tensor:
        return self.weight.view(self.shape)[index].to(self.dtype)


FORMAT = BfFormat
