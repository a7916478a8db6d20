"""nf: NormalFloat, 4, 8 or 16 values at quantiles of a normal law, one scale per group or row.

Paper:   Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs",
         NeurIPS 2023 (nf4); nf2 and nf3 are the same rule at other widths.
Idea:    Weights are nearly normal.  Values at equally likely quantiles are all used about equally
         often, where uniform ones crowd the middle and waste the ends.  It beats a symmetric
         integer grid by far, and an asymmetric one, which has a kernel, on heavy tails only.

Names:   nf4-g64, nf4-row; nf2 to nf4, groups of 32, 64, 128 or the row.
         nf4-g64-dq: scales double-quantized, 8 bits each.
Stored:  weight        uint8, flat, so that plain loading raises: dense ``bits``-bit codes [O, I]
         scale         bfloat16 [O, G]; -dq: uint8 [G, O]
         scale_offset  fp32 [G, C], -dq only: the least of up to 256 scales
         scale_step    bfloat16 [G, C], -dq only
         bias          as it was
Shapes:  O out features, I in features, G = I / group_size (1 for rows), C = ceil(O / 256).
Units:   bits per weight = bits + 16 / group_size; -dq: bits + (8 + 48 / 256) / group_size.
Kernels: none.  CPU: dequantized once, when first multiplied, then an ordinary matmul, with the
         weight of bfloat16 in memory beside the codes.  Elsewhere: dequantized in chunks on every
         call.  No speed is claimed.
Differs: scales in bfloat16 (bitsandbytes: fp32), so that a group's outermost weight may move by
         0.4%; double quantization as ``numerics/double_scales.py`` says.  nf2 is poor: of its four
         values three are not negative.
Raises:  CandidateError for an unknown name, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any, ClassVar, Self

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._codebook import CodebookFormat
from blockwright.formats._grouped import GROUP_NAME, GROUP_SIZES
from blockwright.formats._spec import check_version, spec_field
from blockwright.numerics.codebooks import Codebook

NAME = re.compile(rf"nf(?P<bits>[2-4])-(?P<group>{GROUP_NAME})(?P<double>-dq)?")
OUTERMOST = 0.9677083
"""Probability below the largest value, of the authors' code."""


@cache
def normal_float(bits: int) -> Codebook:
    """2^bits rising values in [-1, 1]: quantiles of a normal law, half of them positive, and 0."""
    quantile = NormalDist().inv_cdf
    positive, negative = 1 << (bits - 1), (1 << (bits - 1)) - 1
    values = [0.0]
    for sign, count in ((1, positive), (-1, negative)):
        step = (OUTERMOST - 0.5) / count
        values += [sign * quantile(OUTERMOST - step * place) for place in range(count)]
    return Codebook(tuple(value / max(values) for value in sorted(values)))


@dataclass(frozen=True)
class NfFormat(CodebookFormat):
    """``nf{bits}-{g<group_size>|row}[-dq]``."""

    bits: int
    group_size: int
    double: bool = False

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4) or self.group_size not in GROUP_SIZES:
            raise FormatError(
                f"nf format of {self.bits} bits in groups of {self.group_size}: allowed are 2 to 4"
                f" bits and groups of {GROUP_SIZES} (0 = row)"
            )

    @property
    def name(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"nf{self.bits}-{group}" + ("-dq" if self.double else "")

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'nf4-g64'? (nf2 to nf4, then -g32, -g64,"
                " -g128 or -row, then -dq for double-quantized scales or nothing)"
            )
        size = 0 if match["group"] == "row" else int(match["group"][1:])
        return cls(int(match["bits"]), size, match["double"] is not None)

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("nf2-g64", "nf4-g128", "nf4-row", "nf3-g32-dq", "nf2-row-dq")

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def codebook(self) -> Codebook:
        return normal_float(self.bits)

    def with_group_size(self, group_size: int) -> Self:
        return replace(self, group_size=group_size)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "nf",
            "version": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
            "double": self.double,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        bits, size, double = (spec_field(spec, key) for key in ("bits", "group_size", "double"))
        return cls(bits, size, bool(double))


FORMAT = NfFormat
