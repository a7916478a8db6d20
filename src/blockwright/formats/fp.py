"""fp: floating-point numbers of 3 to 8 bits, one scale per group or row.

Paper:   Ding, Hou, Zhang et al., "Tilus: A Tile-Level GPGPU Programming Language for Low-Precision
         Computation", 2025 (arbitrary types of 1 to 8 bits; the storage only).
Idea:    With X exponent bits steps double X-fold from the middle to the ends: heavy tails get their
         range, the many small weights their precision.  On normal weights it ties with integers.

    value = (-1)^s 2^(e - bias) (1 + m / 2^Y),  e = 0: (-1)^s 2^(1 - bias) m / 2^Y
    bias = 2^(X - 1) - 1;  no infinity, no NaN

Names:   fp-e2m1-g64 (4 bits), fp-e3m2-row (6 bits): X from 2, 1 + X + Y from 3 to 8 bits; groups of
         32, 64, 128 or the row.  e1mY would be the symmetric integer grid.
Stored:  weight      uint8, flat, so that plain loading raises: dense codes [O, I], the numbers' own
                     bits: sign, exponent, mantissa
         scale       bfloat16 [O, G]
         bias        as it was
Shapes:  O out features, I in features, G = I / group_size (1 for rows).
Units:   bits per weight = 1 + X + Y + 16 / group_size.
Kernels: none.  CPU: dequantized once, when first multiplied, then an ordinary matmul, with the
         weight of bfloat16 in memory beside the codes.  Elsewhere: dequantized in chunks on every
         call.  No speed is claimed.
Differs: nothing is encoded as -0, which decodes to 0.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._codebook import CodebookFormat
from blockwright.formats._grouped import GROUP_NAME, GROUP_SIZES
from blockwright.formats._spec import check_version, spec_field
from blockwright.numerics.codebooks import Codebook

NAME = re.compile(rf"fp-e(?P<exponent>[2-7])m(?P<mantissa>[0-5])-(?P<group>{GROUP_NAME})")


@cache
def small_float(exponent: int, mantissa: int) -> Codebook:
    """All numbers of ``exponent`` and ``mantissa`` bits, by their bits; -0 is a second 0."""
    bias = (1 << (exponent - 1)) - 1
    positive = []
    for e in range(1 << exponent):
        for m in range(1 << mantissa):
            fraction = m / (1 << mantissa) + (e > 0)
            positive.append(fraction * 2.0 ** (max(e, 1) - bias))
    return Codebook((*positive, *(0.0 - value for value in positive)))


@dataclass(frozen=True)
class FpFormat(CodebookFormat):
    """``fp-e{exponent}m{mantissa}-{g<group_size>|row}``."""

    exponent: int
    mantissa: int
    group_size: int

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        bits = self.code_bits
        if self.exponent < 2 or self.mantissa < 0 or bits > 8 or self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"fp format of {self.exponent} exponent and {self.mantissa} mantissa bits in groups"
                f" of {self.group_size}: allowed are 2 or more exponent bits, 3 to 8 bits in all"
                f" with the sign, and groups of {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"fp-e{self.exponent}m{self.mantissa}-{group}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None or int(match["exponent"]) + int(match["mantissa"]) > 7:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'fp-e2m1-g64'? (fp-e2m1 has 4 bits, fp-e2m3"
                " and fp-e3m2 have 6: from 2 exponent bits, at most 7 bits beside the sign; then"
                " -g32, -g64, -g128 or -row)"
            )
        size = 0 if match["group"] == "row" else int(match["group"][1:])
        return cls(int(match["exponent"]), int(match["mantissa"]), size)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("fp-e2m0-g32", "fp-e2m1-g64", "fp-e3m2-g128", "fp-e4m3-row")

    @property
    def code_bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def codebook(self) -> Codebook:
        return small_float(self.exponent, self.mantissa)

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "fp",
            "version": self.version,
            "exponent": self.exponent,
            "mantissa": self.mantissa,
            "group_size": self.group_size,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(*(spec_field(spec, key) for key in ("exponent", "mantissa", "group_size")))


FORMAT = FpFormat
