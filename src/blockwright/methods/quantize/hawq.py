"""Hawq: integer rows with dyadic rescaling, on fixed ranges of inputs and outputs.

Paper:   Yao, Dong, Zheng, Gholami, Yu, Tan, Wang, Huang, Wang, Mahoney, Keutzer, "HAWQ-V3: Dyadic
         Neural Network Quantization", ICML 2021.
Idea:    Symmetric rows, one range for all inputs and one for all outputs leave a number
         s_x s_w / s_y per row, which is rounded to m / 2^c.  Which weights get 4 and which 8 bits
         is the plan's part; the paper's cost of a choice is ``numerics/hessian_trace``.

Equations -> code
    Eq. (1)    q = round(w / s_w), s_w = max |W_r| / (2^(b-1) - 1)      the rows of the format
    s_x        max |x| / 127 over the calibration text                  scales_of
    s_y        max_r sum_i |W_ri| max |x_i| / 32767                     scales_of
    Eq. (4)    s_x s_w / s_y = m / 2^c                                  dyadic
Shapes:  O out features, I in features.
Units:   error = squared output error of the weight; rounded inputs and outputs are not in it.
Needs:   INPUT_ABSMAX, INPUT_GRAM (with compensate).   Fills: dyadic.
Cost:    time O(O I^2 + I^3), memory as gptq; without compensate O(O I), two copies of W.
Differs from the paper:
    1. Errors of other columns make up for rounding (GPTQ's sweep, `compensate`); the paper trains
       the rounded network.
    2. The range of inputs is that of the whole calibration text, not a running mean of maxima, and
       that of outputs is a bound of what such inputs can give.
    3. HAWQ-V3's integer program is the plan, by another cost of the same second order; the claims
       compare both.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: integers against floating point, both costs against measured losses:
         tests/claims/test_hawq.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import check_finite, grid_fitter, input_energy
from blockwright.methods.quantize._static_groups import in_static_groups
from blockwright.numerics.dyadic import dyadic
from blockwright.numerics.finite import all_finite
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.inverse_hessian import upper_factor
from blockwright.types import (
    DyadicFormat,
    DyadicSolution,
    Format,
    GridFormat,
    LinearMethod,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Hawq(LinearMethod):
    """HAWQ-V3's integer-only linear."""

    paper: ClassVar[str] = "Yao et al., HAWQ-V3, ICML 2021"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = DyadicFormat  # type: ignore[type-abstract]

    compensate: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise CandidateError(f"option hawq@damping: got {self.damping}, needs a number above 0")

    @property
    def needs(self) -> frozenset[Statistic]:
        gram = {Statistic.INPUT_GRAM} if self.compensate else set()
        return frozenset({Statistic.INPUT_ABSMAX, *gram})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> DyadicSolution:
        check_finite(W_OI)
        if not isinstance(format, DyadicFormat):
            raise CandidateError(f"hawq cannot fill {format.name}: it fills dyadic formats")
        if statistics.tokens == 0:
            raise NumericalError("no calibration token reached this site: inputs have no range")
        grid, codes_OI = self._rounded(W_OI, statistics, format.rows)
        scales = scales_of(W_OI, statistics.need(Statistic.INPUT_ABSMAX), format)
        signed_OI = codes_OI.short() - grid.zero_point.short()
        M_O = grid.scale[:, 0].double() * (scales[0].double() / scales[1].double())
        m_O, c_O = dyadic(torch.where(signed_OI.any(1), M_O, 1.0))  # a row of zeros has any
        return DyadicSolution(
            codes_OI=signed_OI.to(torch.int8),
            multiplier_O=m_O,
            shift_O=c_O,
            scales=scales,
        )

    def _rounded(
        self, W_OI: Tensor, statistics: Statistics, rows: GridFormat
    ) -> tuple[AffineGrid, Tensor]:
        """The rows' grid and codes."""
        if self.compensate:
            order = torch.argsort(input_energy(statistics), descending=True, stable=True)
            H_II = statistics.need(Statistic.INPUT_GRAM)
            U_II = upper_factor(H_II, self.damping, order=order)
            grid, Q_IO, _ = in_static_groups(W_OI, U_II, order, grid_fitter(rows, "none", None))
            if not all_finite(Q_IO):
                raise NumericalError("the compensated weights grew past float32; raise the damping")
            Q_OI = Q_IO.T.contiguous()
        else:
            grid, Q_OI = rows.fit_grid(W_OI), W_OI
        if not isinstance(grid, AffineGrid):
            raise CandidateError(f"hawq fills integer rows, not {rows.name}")
        return grid, grid.encode(Q_OI, slice(None))


def scales_of(W_OI: Tensor, absmax_I: Tensor, format: DyadicFormat) -> Tensor:
    """Units of inputs and outputs, fp32 [2]: no output of inputs in this range is cut off.

    1 where nothing but zeros is seen.
    """
    largest = torch.stack([absmax_I.max(), (W_OI.abs() @ absmax_I).max()])
    tops = largest.new_tensor([format.input_top, format.output_top])
    scales = torch.where(largest > 0, largest / tops, 1.0)
    if not all_finite(scales):
        raise NumericalError("the inputs' ranges are not finite")
    return scales


METHOD = Hawq
