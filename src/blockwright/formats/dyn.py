"""dyn: the dynamic 8-bit type, seven decades of magnitudes, one scale per group or row.

Paper:   Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization",
         ICLR 2022.
Idea:    Every decade below the scale has half as many values as the one above it, so that small
         numbers keep a relative precision where uniform steps would make them zero.  Made for the
         states of optimizers.  For weights, which stay within two decades, int8 has less error.

Names:   dyn8-g64; groups of 32, 64, 128 or the row.
Stored:  weight      uint8, flat, so that plain loading raises: codes [O, I], rising with the values
         scale       bfloat16 [O, G]
         bias        as it was
Shapes:  O out features, I in features, G = I / group_size (1 for rows).
Units:   bits per weight = 8 + 16 / group_size.
Kernels: none.  CPU: dequantized once, when first multiplied, then an ordinary matmul, with the
         weight of bfloat16 in memory beside the codes.  Elsewhere: dequantized in chunks on every
         call.  No speed is claimed.
Differs: scales in bfloat16 (authors: fp32) and fitted to the sign of the outermost weight: the
         table ends at 1 and at -0.993.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._codebook import CodebookFormat
from blockwright.formats._grouped import GROUP_NAME, GROUP_SIZES
from blockwright.formats._spec import check_version, spec_field
from blockwright.numerics.codebooks import Codebook, dynamic_codebook

NAME = re.compile(rf"dyn8-(?P<group>{GROUP_NAME})")


@dataclass(frozen=True)
class DynFormat(CodebookFormat):
    """``dyn8-{g<group_size>|row}``."""

    group_size: int

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"dyn format in groups of {self.group_size}: allowed are {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        return "dyn8-" + (f"g{self.group_size}" if self.group_size else "row")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'dyn8-g64'? (dyn8, then -g32, -g64, -g128"
                " or -row)"
            )
        return cls(0 if match["group"] == "row" else int(match["group"][1:]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("dyn8-g64", "dyn8-row")

    @property
    def code_bits(self) -> int:
        return 8

    @property
    def codebook(self) -> Codebook:
        return dynamic_codebook(signed=True)

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def spec(self) -> dict[str, Any]:
        return {"format": "dyn", "version": self.version, "group_size": self.group_size}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "group_size"))


FORMAT = DynFormat
