"""sum: a weight in few bits or with zeros, plus a product of two thin matrices.

Paper:   Guo, Greengard, Xing, Kim, "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for
         Efficient Language Model Finetuning", ICLR 2024; with zeros: Thangarasa, Saxena, Gupta,
         Lie, "Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing Training Efficiency",
         ICML 2024 (its form "sparse doped").
Idea:    Rounding to 2 or 3 bits leaves errors with structure, and weights may have large directions
         that few bits, or few values, should not be spent on; a product of low rank takes both.
         Its bytes must earn more than as many bits or values more would.

Names:   nf3-g64&rank-r16: any grid format, then rank-r<rank> or rank-p<percent>.
         sparse50&rank-r16, panel32-50&rank-p10: any format of zeros, likewise.
Stored:  weight      uint8, empty, so that plain loading raises
         base.*      [O, I] as the first format stores it
         plus.*      the two factors, as the second does
         bias        as it was
Shapes:  O out features, I in features.
Units:   bits per weight = the sum of both.
Kernels: those of both, one after the other.
Raises:  CandidateError for formats that cannot be summed, FormatError for a shape or a newer
         version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats._composite import CompositeLinear, as_part
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.nf import NfFormat
from blockwright.formats.rank import RankFormat
from blockwright.formats.sparse import SparseFormat
from blockwright.types import (
    FactoredFormat,
    Format,
    FormatLimits,
    GridFormat,
    GridSumFormat,
    MaskedFormat,
    MaskedSumFormat,
    PackedFormat,
    SiteKind,
    Solution,
    SumFormat,
    SumSolution,
)


@dataclass(frozen=True)
class PlusRank(SumFormat):
    """``<whole weight>&<rank>``"""

    base: PackedFormat
    plus: FactoredFormat

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})

    @classmethod
    def of(cls, base: Format, plus: Format) -> PlusRank:
        """The sum of two formats; ``CandidateError`` where they cannot be summed."""
        if isinstance(plus, FactoredFormat) and isinstance(base, GridFormat):
            return GridPlusRank(base, plus)
        if isinstance(plus, FactoredFormat) and isinstance(base, MaskedFormat):
            return MaskedPlusRank(base, plus)
        raise CandidateError(
            f"{base.name}&{plus.name}: '&' adds a product of thin matrices to a grid format or to"
            " one of zeros, e.g. nf3-g64&rank-r16 or sparse50&rank-r16"
        )

    @property
    def name(self) -> str:
        return f"{self.base.name}&{self.plus.name}"

    @classmethod
    def parse(cls, name: str) -> Self:
        raise CandidateError(
            f"unknown format {name!r}; a sum is written with '&', e.g. nf3-g64&rank-r16"
        )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        grids = ((NfFormat(3, 64), 16), (NfFormat(4, 32, double=True), 8))
        sums = (*grids, (SparseFormat(percent=50), 8), (SparseFormat(n=2, m=4), 4))
        return tuple(cls.of(base, RankFormat(fixed_rank=rank)).name for base, rank in sums)

    @property
    def limits(self) -> FormatLimits:
        base, plus = self.base.limits, self.plus.limits
        return FormatLimits(
            in_multiple=base.in_multiple,
            packed_on_cpu=base.packed_on_cpu and plus.packed_on_cpu,
            resident_bits=base.resident_bits,
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        self.base.check_shape(shape, where)
        self.plus.check_shape(shape, where)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return self.base.stored_bytes(shape) + self.plus.stored_bytes(shape)

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        base = self.base.resident_bytes(shape, device)
        return base + self.plus.resident_bytes(shape, device)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "sum",
            "version": self.version,
            "base": self.base.spec(),
            "plus": self.plus.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        base, plus = (format_from_spec(spec_field(spec, name)) for name in ("base", "plus"))
        try:
            found = cls.of(base, plus)
        except CandidateError as error:
            raise FormatError(f"format spec {dict(spec)}: {error}") from None
        if not isinstance(found, cls):
            raise FormatError(f"format spec {dict(spec)} is of {found.name}, not of {cls.__name__}")
        return found

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> SumLinear:
        if not isinstance(solution, SumSolution):
            raise TypeError(f"{self.name} stores a SumSolution, not {solution}")
        base = as_part(self.base.pack(solution.base, None, dtype))
        plus = as_part(self.plus.pack(solution.plus, None, dtype))
        return SumLinear(
            self,
            (base.out_features, base.in_features),
            parts={"base": base, "plus": plus},
            positions={},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> SumLinear:
        parts = {"base": self.base, "plus": self.plus}
        return SumLinear(
            self,
            shape,
            parts={
                name: as_part(format.empty(shape, bias=False, dtype=dtype, device=device))
                for name, format in parts.items()
            },
            positions={},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


@dataclass(frozen=True)
class GridPlusRank(PlusRank, GridSumFormat):
    """``nf3-g64&rank-r16``"""

    base: GridFormat

    default_method: ClassVar[str | None] = "lqlora"


@dataclass(frozen=True)
class MaskedPlusRank(PlusRank, MaskedSumFormat):
    """``sparse50&rank-r16``"""

    base: MaskedFormat

    default_method: ClassVar[str | None] = "doped"


class SumLinear(CompositeLinear):
    """The packed module: both products, added."""

    @property
    def kernel(self) -> str:
        return f"{self.part('base').kernel} + {self.part('plus').kernel}"

    def product(self, x: Tensor) -> Tensor:
        return self.part("base").product(x) + self.part("plus").product(x)

    def differentiable_weight(self) -> Tensor:
        base, plus = self.part("base"), self.part("plus")
        return base.differentiable_weight() + plus.differentiable_weight()

    def dequantize(self) -> Tensor:
        return self.part("base").dequantize() + self.part("plus").dequantize()

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)


FORMAT = PlusRank
