"""bin: a share of the input columns in 4 bits, one bit for every other weight.

Paper:   Zhao et al., "PTQ1.61: Push the Real Limit of Extremely Low-Bit Post-Training Quantization
         Methods for Large Language Models", ACL 2025.
Idea:    One bit cannot carry the inputs that matter.  Whole columns of them in 4 bits need one bit
         of mask per input, where single weights would need one per weight.  All others are one of
         two values of their row, times a factor of their column.

Names:   bin-p20: about 20% of the inputs in 4 bits, p1 to p90.
Stored:  weight      uint8, empty, so that plain loading raises
         mask        uint8, flat: one bit per input, 1 = in 4 bits
         factor      bfloat16 [J]: of the other columns
         salient.*   [O, K] as int4-row
         signs.*     [O, J] as affine1-row: scale and offset give the two values of a row
         bias        as it was
Shapes:  O out features, I in features, T tokens, J = I - K; K = I percent / 100 rounded to a
         multiple of 32, at least 32.
Units:   bits per weight = 4 K / I + J / I + 52 / I + (1 + 16 J / I) / O: 1.6 and something only
         where O and I are large: 1.625 at 4096 x 4096, 1.641 at 2048 x 2048, 2.004 at 256 x 256,
         where K is a quarter.
Kernels: bf16 on CPU: inputs are gathered once for each part, those of the signs times their factor,
         then the int4 kernel twice; so 4 bits are resident.  Inputs that 32 does not divide, many
         tokens and other dtypes: the parts are dequantized in chunks.
Differs: 1. Two free values per row; the paper's are r1 (mu +- alpha), mu fixed: the same storage.
         2. K is a multiple of 32, so that both parts fit a kernel.
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
from blockwright.formats._composite import PlacedLinear, empty_part, packed_part
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.affine import AffineFormat
from blockwright.formats.int import IntFormat
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import FormatLimits, SalientFormat, SalientSolution, SiteKind, Solution

NAME = re.compile(r"bin-p(?P<percent>[1-9][0-9]?)")
MOST_PERCENT = 90
STEP = 32
"""Columns in 4 bits come in multiples of it: the smallest group of the int4 kernel."""
PLACE_BYTES = 4
"""Resident, per input: where it is gathered from."""


@dataclass(frozen=True)
class BinFormat(SalientFormat):
    """``bin-p<percent>``."""

    percent: int

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "ptq161"

    def __post_init__(self) -> None:
        if not 0 < self.percent <= MOST_PERCENT:
            raise FormatError(
                f"bin format with {self.percent}% of the inputs in 4 bits: allowed are 1 to"
                f" {MOST_PERCENT}"
            )

    @property
    def name(self) -> str:
        return f"bin-p{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None or int(match["percent"]) > MOST_PERCENT:
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'bin-p20'? (bin-p1 to bin-p90: percent of"
                " the input columns in 4 bits, the others in one)"
            )
        return cls(int(match["percent"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("bin-p20", "bin-p50")

    @property
    def salient(self) -> IntFormat:
        return IntFormat(4, 0, symmetric=False)

    @property
    def rest(self) -> AffineFormat:
        return AffineFormat(1, 0)

    def kept(self, in_features: int) -> int:
        wanted = round(self.percent * in_features / (100 * STEP))
        return STEP * min(max(1, wanted), (in_features - 1) // STEP)

    def stored_factor(self, factor_J: Tensor) -> Tensor:
        return factor_J.to(SCALE_DTYPE).float()

    def part_shapes(self, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Part -> (rows, inputs)."""
        out_features, in_features = shape
        kept = self.kept(in_features)
        return {"salient": (out_features, kept), "signs": (out_features, in_features - kept)}

    @property
    def limits(self) -> FormatLimits:
        salient, signs = self.salient.limits, self.rest.limits
        return FormatLimits(
            packed_on_cpu=salient.packed_on_cpu and signs.packed_on_cpu,
            resident_bits=max(salient.resident_bits, signs.resident_bits),
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        out_features, in_features = shape
        if out_features < 1 or in_features < 2 * STEP:
            raise FormatError(
                f"{self.name}: {where}: a weight of {out_features} x {in_features} has no"
                f" {2 * STEP} inputs to part; use {self.salient.name} or {self.rest.name}"
            )

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        parts = self.part_shapes(shape)
        stored = self.salient.stored_bytes(parts["salient"])
        return self._position_bytes(shape) + stored + self.rest.stored_bytes(parts["signs"])

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        parts = self.part_shapes(shape)
        resident = self.salient.resident_bytes(parts["salient"], device)
        resident += self.rest.resident_bytes(parts["signs"], device)
        return self._position_bytes(shape) + PLACE_BYTES * shape[1] + resident

    def _position_bytes(self, shape: tuple[int, int]) -> int:
        """Mask and factors."""
        rest = shape[1] - self.kept(shape[1])
        return packed_bytes(1, 1, shape[1]) + SCALE_DTYPE.itemsize * rest

    def spec(self) -> dict[str, Any]:
        return {"format": "bin", "version": self.version, "percent": self.percent}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(spec_field(spec, "percent"))

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> BinLinear:
        if not isinstance(solution, SalientSolution):
            raise TypeError(f"{self.name} stores a SalientSolution, not {solution}")
        in_features = len(solution.columns_K) + len(solution.factor_J)
        if len(solution.columns_K) != self.kept(in_features):
            raise ValueError(
                f"{self.name}: {len(solution.columns_K)} columns in 4 bits,"
                f" {self.kept(in_features)} needed"
            )
        bits = torch.zeros(1, in_features, dtype=torch.uint8, device=solution.columns_K.device)
        bits[0, solution.columns_K] = 1
        return BinLinear(
            self,
            (len(solution.rest.codes_OI), in_features),
            parts={
                "salient": packed_part(self.salient, solution.salient, dtype),
                "signs": packed_part(self.rest, solution.rest, dtype),
            },
            positions={
                "mask": pack_codes(bits, 1),
                "factor": solution.factor_J.to(SCALE_DTYPE, copy=True),
            },
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> BinLinear:
        shapes = self.part_shapes(shape)
        parts = {"salient": self.salient, "signs": self.rest}
        mask = torch.empty(packed_bytes(1, 1, shape[1]), dtype=torch.uint8, device=device)
        factor = torch.empty(shapes["signs"][1], dtype=SCALE_DTYPE, device=device)
        return BinLinear(
            self,
            shape,
            parts={n: empty_part(part, shapes[n], dtype, device) for n, part in parts.items()},
            positions={"mask": mask, "factor": factor},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class BinLinear(PlacedLinear):
    """The packed module; its places are the inputs of either part."""

    format: BinFormat  # narrower than the base's
    mask: Tensor
    factor: Tensor

    def product(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        salient, rest = self.places
        y = self.part("salient").product(x.index_select(-1, salient))
        return y + self.part("signs").product(x.index_select(-1, rest) * self.factor.to(x.dtype))

    def differentiable_weight(self) -> Tensor:
        return self._joined(
            self.part("salient").differentiable_weight(), self.part("signs").differentiable_weight()
        )

    def dequantize(self) -> Tensor:
        with torch.no_grad():
            return self._joined(self.part("salient").dequantize(), self.part("signs").dequantize())

    def _joined(self, salient_OK: Tensor, signs_OJ: Tensor) -> Tensor:
        """Columns where they belong, those of the signs times their factor."""
        stacked = torch.cat([salient_OK, signs_OJ * self.factor.float()], dim=1)
        return stacked.index_select(1, torch.cat(self.find_places()).argsort())

    def find_places(self) -> tuple[Tensor, Tensor]:
        """int32 [K] and [J], rising."""
        is_salient_I = unpack_codes(self.mask, 1, 1, self.in_features)[0]
        order_I = is_salient_I.argsort(descending=True, stable=True).int()
        kept = self.format.kept(self.in_features)
        return order_I[:kept], order_I[kept:]


FORMAT = BinFormat
