"""panel: rows in panels that keep the same inputs, so that what is kept is small dense matrices.

Paper:   Fang, Shen, Wang, Meng, et al., "An Efficient Sparse Inference Software Accelerator for
         Transformer-based Language Models on CPUs", 2023 (4 x 1 blocks), and Xu et al., "LPViT:
         Low-Power Semi-structured Pruning for Vision Transformers", ECCV 2024 (larger blocks).
Idea:    Zeros cost nothing only where a whole vector instruction can be left out.  If R outputs
         share their inputs, these are gathered once and multiplied densely.  The larger the unit,
         the faster, and the worse the error: single weights lose far less at equal sparsity.

Names:   panel32-80: in every panel of 32 outputs 80% of the inputs are zero; panel4 to panel128,
         10 to 90%.  panel32x16-50: inputs stay or go in units of 16 consecutive ones, 2 to 64.
         +int8, +int4: the kept values stored so, one scale per row.
Stored:  weight      uint8, empty, so that plain loading raises
         positions   uint8, flat: one bit per unit [O / R, I / C]
         values.*    [O, K] in the format of the values
         bias        as it was
Shapes:  O out features, I in features, K kept inputs per row, P = ceil(O / R) panels of R rows,
         U = I / C units of C inputs, T tokens.
Units:   bits per weight = K / I (bits of the values) + 1 / (R C).
Kernels: gathered inputs times panels, where a product of few tokens is timed against the dense one;
         otherwise dequantized once.
Raises:  CandidateError for an unknown name or values, FormatError for a shape or a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._composite import values_from
from blockwright.formats._masked import MaskedLinear, Matrix, empty_masked, pack_masked
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.bf import BfFormat
from blockwright.numerics.masks import keep_units, kept_columns, spread_units
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.numerics.panels import PanelMatrix
from blockwright.types import (
    Format,
    FormatLimits,
    GridFormat,
    MaskedFormat,
    SiteKind,
    Solution,
    ValueFormat,
)

ROWS = (4, 8, 16, 32, 64, 128)
COLUMNS = (1, 2, 4, 8, 16, 32, 64)
NAME = re.compile(r"panel(?P<rows>[0-9]+)(?:x(?P<columns>[0-9]+))?-(?P<percent>[1-9]0)")
INDEX_BYTES = 4
"""Of a kept unit in the kernel's layout."""


@dataclass(frozen=True)
class PanelFormat(MaskedFormat):
    """``panel<rows>-<percent>`` or ``panel<rows>x<columns>-<percent>``."""

    panel_rows: int
    unit_columns: int
    percent: int
    """Share of zeros in every panel."""
    values: ValueFormat = field(default_factory=BfFormat)

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "sparsegpt"

    def __post_init__(self) -> None:
        known = self.panel_rows in ROWS and self.unit_columns in COLUMNS
        if not known or not 0 < self.percent < 100:
            raise FormatError(
                f"panel format of units of {self.panel_rows} x {self.unit_columns} and"
                f" {self.percent}% zeros: rows are {_listed(ROWS)}, columns {_listed(COLUMNS)}"
            )

    @property
    def structure(self) -> str:
        columns = "" if self.unit_columns == 1 else f"x{self.unit_columns}"
        return f"panel{self.panel_rows}{columns}-{self.percent}"

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        rows, columns = (int(match[key] or 1) for key in ("rows", "columns")) if match else (0, 0)
        if match is None or rows not in ROWS or columns not in COLUMNS or match["columns"] == "1":
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'panel32-80'? (panels of {_listed(ROWS)}"
                f" outputs, then x and {_listed(COLUMNS[1:])} for units of so many inputs, or"
                " nothing; 10 to 90 percent of zeros; then +int8 or the like, or nothing)"
            )
        return cls(rows, columns, int(match["percent"]))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("panel32-80", "panel16-50", "panel4-90", "panel16x16-50", "panel32-80+int8")

    @property
    def limits(self) -> FormatLimits:
        density = 1 - self.percent / 100
        exact = isinstance(self.values, BfFormat)
        beside = 0.0 if exact else self.values.limits.resident_bits * density
        return FormatLimits(
            in_multiple=self.unit_columns,
            packed_on_cpu=True,
            resident_bits=16 * density + beside,
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        """The kernel's values in whole panels, its indices, and what is stored beside."""
        kept, panels = self.kept(shape[1]), self.panels(shape[0])
        values = panels * self.panel_rows * kept * torch.bfloat16.itemsize
        matrix = values + panels * kept // self.unit_columns * INDEX_BYTES
        if isinstance(self.values, BfFormat):
            return matrix + self.position_bytes(shape)
        return matrix + self.stored_bytes(shape)

    @property
    def pattern_size(self) -> int:
        return 0

    @property
    def unit(self) -> tuple[int, int]:
        return self.panel_rows, self.unit_columns

    def panels(self, out_features: int) -> int:
        """P"""
        return -(-out_features // self.panel_rows)

    def kept(self, in_features: int) -> int:
        units = in_features // self.unit_columns
        return round(units * (100 - self.percent) / 100) * self.unit_columns

    def best_mask(self, score_OJ: Tensor, kept: int | None = None) -> Tensor:
        kept = self.kept(score_OJ.shape[1]) if kept is None else kept
        return keep_units(score_OJ, kept // self.unit_columns, *self.unit)

    def with_values(self, values: Format) -> Self:
        if isinstance(values, GridFormat) and values.group_size:
            raise CandidateError(
                f"{self.structure}+{values.name}: groups of kept values would begin at another"
                " input in every panel; use values with one scale per row, e.g. +int4 or +int8"
            )
        return super().with_values(values)

    def check_structure(self, shape: tuple[int, int], where: str) -> None:
        in_features = shape[1]
        if in_features % self.unit_columns:
            fitting = max(size for size in COLUMNS if in_features % size == 0)
            columns = "" if fitting == 1 else f"x{fitting}"
            raise FormatError(
                f"{self.name}: {where}: {in_features} inputs are not whole units of"
                f" {self.unit_columns}; use panel{self.panel_rows}{columns}-{self.percent}"
            )
        if self.kept(in_features) < 1:
            raise FormatError(f"{self.name}: {where}: nothing of {in_features} inputs would stay")

    def position_bytes(self, shape: tuple[int, int]) -> int:
        return packed_bytes(1, self.panels(shape[0]), shape[1] // self.unit_columns)

    def spec(self) -> dict[str, Any]:
        return {
            "format": "panel",
            "version": self.version,
            "rows": self.panel_rows,
            "columns": self.unit_columns,
            "percent": self.percent,
            "values": self.values.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        return cls(
            spec_field(spec, "rows"),
            spec_field(spec, "columns"),
            spec_field(spec, "percent"),
            values_from(spec),
        )

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> PanelLinear:
        return pack_masked(PanelLinear, self, solution, bias_O, dtype)

    def packed_positions(self, mask_OI: Tensor) -> Tensor:
        """The mask of units as stored; raises ``ValueError`` where it breaks units or counts."""
        mask_PU = mask_OI[:: self.panel_rows, :: self.unit_columns]
        whole = spread_units(mask_PU, *self.unit)[: len(mask_OI)]
        kept = self.kept(mask_OI.shape[1]) // self.unit_columns
        if not torch.equal(whole, mask_OI) or (mask_PU.sum(1) != kept).any():
            raise ValueError(f"{self.name}: the mask does not keep {kept} whole units per panel")
        return pack_codes(mask_PU.to(torch.uint8), 1)

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> PanelLinear:
        return empty_masked(PanelLinear, self, shape, bias=bias, dtype=dtype, device=device)


class PanelLinear(MaskedLinear):
    """The packed module."""

    format: PanelFormat  # narrower than the base's

    def columns(self) -> Tensor:
        O, I = self._shape  # noqa: E741
        mask_OI = spread_units(self._units(), *self.format.unit)[:O]
        return kept_columns(mask_OI, self.format.kept(I))

    def matrix_of(self, kept_OK: Tensor) -> Matrix | Tensor:
        return PanelMatrix.of(kept_OK, self._units(), self._shape, self.format.unit)

    @property
    def kernel(self) -> str:
        return "gathered panels"

    def _units(self) -> Tensor:
        """bool [P, U]"""
        O, I = self._shape  # noqa: E741
        columns = I // self.format.unit_columns
        return unpack_codes(self.positions, 1, self.format.panels(O), columns).bool()


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


FORMAT = PanelFormat
