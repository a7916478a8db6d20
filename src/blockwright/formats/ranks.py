"""ranks: of low rank where the weight's own singular values allow it, whole elsewhere.

Paper:   Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from
         Low-Rank Gradients", ICML 2025 (the threshold; methods/lowrank/welore.py counts).
Idea:    One threshold for all weights gives each a rank of its own: heavy-tailed spectra get few
         ranks, flat ones stay whole.

Names:   ranks-t175: normalized singular values of at least 0.175 count; t1 to t999.
         +int8, +int4-g64 ...: factors, and weights that stay whole, stored so.
Stored:  as rank-r<rank> stores its factors, or as the format of the values stores a weight; nothing
         that is stored names the threshold.
Shapes:  O out features, I in features, R rank, filled up to whole groups of the values.
Units:   bytes are known when the variant is built; by name it takes the values' at most.
Kernels: those of rank, or of the values.  Which one a weight takes is unknown before it is built:
         not offered under a limit on speed (rank-r<rank> is).
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.formats._composite import values_from
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.bf import BfFormat
from blockwright.formats.rank import RankFormat
from blockwright.types import (
    FactoredSolution,
    FormatLimits,
    PackedLinear,
    SiteKind,
    Solution,
    ThresholdFormat,
    ValueFormat,
)

NAME = re.compile(r"ranks-t(?P<thousandths>[1-9][0-9]{0,2})")


@dataclass(frozen=True)
class RanksFormat(ThresholdFormat):
    """``ranks-t<thousandths>``"""

    thousandths: int = 100
    values: ValueFormat = field(default_factory=BfFormat)

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "welore"

    @property
    def threshold(self) -> float:
        return self.thousandths / 1000

    @property
    def structure(self) -> str:
        return f"ranks-t{self.thousandths}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'ranks-t175'? (ranks-t1 to ranks-t999:"
                " singular values of at least 0.001 to 0.999 count, the largest being 1 and the"
                " smallest 0; then +int8 or the like, or nothing)"
            )
        return cls(int(match["thousandths"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("ranks-t1", "ranks-t1+int8")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.values.limits.in_multiple,
            resident_bits=self.values.limits.resident_bits,
        )

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        """Every shape that the values can take."""

    def factored(self, shape: tuple[int, int], counted: int) -> RankFormat | None:
        group = self.values.limits.in_multiple
        rank = max(1, -(-counted // group)) * group
        found = RankFormat(fixed_rank=rank, values=self.values)
        smaller = found.stored_bytes(shape) < self.values.stored_bytes(shape)
        return found if rank <= min(shape) and smaller else None

    def least_bytes(self, shape: tuple[int, int]) -> int:
        found = self.factored(shape, 1)
        return self.stored_bytes(shape) if found is None else found.stored_bytes(shape)

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        """The most that it can be."""
        return self.values.resident_bytes(shape, device)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "ranks",
            "version": self.version,
            "thousandths": self.thousandths,
            "values": self.values.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "thousandths"), values_from(spec))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> PackedLinear:
        """The module of a ``rank`` format, or of the values': what is stored has no threshold."""
        if isinstance(solution, FactoredSolution):
            rank = len(solution.right.weight())
            return RankFormat(fixed_rank=rank, values=self.values).pack(solution, bias_O, dtype)
        try:
            return self.values.pack(solution, bias_O, dtype)
        except TypeError:
            raise TypeError(
                f"{self.name} stores a FactoredSolution or one of {self.values.name}, not"
                f" {solution}"
            ) from None

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> PackedLinear:
        """Of a weight that stays whole."""
        return self.values.empty(shape, bias=bias, dtype=dtype, device=device)


FORMAT = RanksFormat
