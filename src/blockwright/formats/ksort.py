"""ksort: the inputs of a weight in the order of their norms, so that outliers share a group.

Paper:   Trukhanov and Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024.
Idea:    What shares a scale should be alike.  Sorted by the norm of their columns, large inputs
         spoil the groups of other large ones only.  The order is one for all rows, so it costs next
         to nothing to keep.  It wins where some inputs stand out; where none does it is noise.

Names:   ksort+bfp4-b32, ksort+int4-g64 ...: the values in that format, input by input in order.
Stored:  weight      uint8, empty, so that plain loading raises
         order       int16 [I], int32 above 32768 inputs: the input that stands at each place
         values.*    [O, I] in the format of the values
         bias        as it was
Shapes:  O out features, I in features.
Units:   bits per weight = those of the values + 16 / O.
Kernels: the inputs are gathered once per call, then the values' own kernel.
Differs: 1. The paper folds the order into what produces the inputs, which makes it free; here it
            is kept and applied, 2 I bytes, so that a site needs no other one to be changed.
         2. The paper sorts key channels for the cache; this is for weights.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.formats._composite import (
    CompositeLinear,
    empty_parts,
    packed_part,
    position_dtype,
    values_from,
)
from blockwright.formats._spec import check_version
from blockwright.formats.bfp import BfpFormat
from blockwright.types import (
    FormatLimits,
    PermutedFormat,
    PermutedSolution,
    SiteKind,
    Solution,
    ValueFormat,
)


@dataclass(frozen=True)
class KsortFormat(PermutedFormat):
    """``ksort+<values>``; ``ksort`` alone has bfp4-b32 values."""

    values: ValueFormat = field(default_factory=lambda: BfpFormat(4, 32))

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "ksort"

    @property
    def structure(self) -> str:
        return "ksort"

    @property
    def name(self) -> str:
        return f"ksort+{self.values.name}"

    @classmethod
    def parse(cls, name: str) -> Self:
        if name != "ksort":
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'ksort+bfp4-b32'? Behind the + goes the"
                " format of the values"
            )
        return cls()

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("ksort+bfp4-b32", "ksort+bfp8-b64", "ksort+int4-g32")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.values.limits.in_multiple,
            packed_on_cpu=self.values.limits.packed_on_cpu,
            resident_bits=self.values.limits.resident_bits,
        )

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        """Every shape that the values can take."""

    def position_bytes(self, shape: tuple[int, int]) -> int:
        return shape[1] * position_dtype(shape[1]).itemsize

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        return self.position_bytes(shape) + self.values.resident_bytes(shape, device)

    def spec(self) -> dict[str, Any]:
        return {"format": "ksort", "version": self.version, "values": self.values.spec()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(values_from(spec))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> KsortLinear:
        if not isinstance(solution, PermutedSolution):
            raise TypeError(f"{self.name} stores a PermutedSolution, not {solution}")
        values = packed_part(self.values, solution.values, dtype)
        return KsortLinear(
            self,
            (values.out_features, values.in_features),
            parts={"values": values},
            positions={"order": solution.order_I.to(position_dtype(values.in_features))},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> KsortLinear:
        order = torch.empty(shape[1], dtype=position_dtype(shape[1]), device=device)
        return KsortLinear(
            self,
            shape,
            parts=empty_parts(self, shape, dtype, device),
            positions={"order": order},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class KsortLinear(CompositeLinear):
    """The packed module: inputs are gathered in the order of the values."""

    order: Tensor

    @property
    def kernel(self) -> str:
        return self.part("values").kernel

    def product(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        return self.part("values").product(x.index_select(-1, self.order.int()))

    def differentiable_weight(self) -> Tensor:
        return self._in_place(self.part("values").differentiable_weight())

    def dequantize(self) -> Tensor:
        return self._in_place(self.part("values").dequantize())

    def rows(self, index: Tensor) -> Tensor:
        return self._in_place(self.part("values").rows(index))

    def _in_place(self, values: Tensor) -> Tensor:
        """Columns back where they were."""
        return values.index_select(-1, torch.argsort(self.order.long()))


FORMAT = KsortFormat
