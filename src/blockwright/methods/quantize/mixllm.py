"""Mixllm: give the rows that the loss feels most twice the bits.

Paper:   Zheng, Song, Liu, "MixLLM: LLM Quantization with Global Mixed-precision between
         Output-features and Highly-efficient System Design", 2024.
Idea:    What an output's rounding error costs is its size times how much the loss feels that
         output.  Both differ by orders of magnitude between rows and between linears, so a few rows
         carry most of the loss.

Equations -> code
    Eq. (3)   |p + p^2 / 2|, p = <dL/dW_r, dW_r>   row_gains   by the expected second order,
              1/2 G_r d_r H d_r^T, and what remains of it at 8 bits taken off
Shapes:  O out features, I in features, K wide rows.
Units:   gain = loss in nats per token; error = squared output error, mean over tokens.
Needs:   OUTPUT_GRADIENT, INPUT_GRAM.   Fills: mix.
Cost:    time O(O I^2 + I^3), memory three copies of the Gram and three of W.
Differs from the paper:
    1. Rows are ranked within a linear; how many each linear gets is for the plan, which puts
       mix-p1, p5, p20 ... of all linears against each other by the same loss.  The paper ranks the
       rows of all linears in one list.
    2. The expected second-order loss: the first order is zero on average, for labels are drawn from
       the model itself.
    3. Errors of other columns make up for rounding (GPTQ's sweep, `compensate`), in both widths.
Raises:  NumericalError when W, H or G is not finite, no token or no gradient reached the site, or H
         cannot be factored.
Checked: predicted loss against random rows and against all rows narrow, every row in one width:
         tests/claims/test_mixllm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import (
    GridFitter,
    Search,
    check_finite,
    check_search,
    grid_fitter,
    input_energy,
)
from blockwright.methods.quantize._static_groups import in_static_groups
from blockwright.numerics.finite import all_finite
from blockwright.numerics.inverse_hessian import upper_factor
from blockwright.numerics.losses import row_errors
from blockwright.types import (
    Format,
    GridSolution,
    LinearMethod,
    MixedRowsFormat,
    MixedRowsSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Mixllm(LinearMethod):
    """MixLLM: 8 bits for the rows that matter."""

    paper: ClassVar[str] = "Zheng et al., MixLLM, 2024"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = MixedRowsFormat  # type: ignore[type-abstract]

    compensate: bool = True
    damping: float = 0.01
    search: Search = "none"

    def __post_init__(self) -> None:
        check_search("mixllm", self.search)
        if not 0 < self.damping < float("inf"):
            raise CandidateError(
                f"option mixllm@damping: got {self.damping}, needs a number above 0"
            )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM, Statistic.OUTPUT_GRADIENT})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MixedRowsSolution:
        check_finite(W_OI)
        if not isinstance(format, MixedRowsFormat):
            raise CandidateError(f"mixllm cannot fill {format.name}: it mixes rows of two widths")
        h_I, G_O = input_energy(statistics), output_gradient(statistics)
        H_II = statistics.need(Statistic.INPUT_GRAM)
        order = torch.argsort(h_I, descending=True, stable=True)
        U_II = upper_factor(H_II, self.damping, order=order) if self.compensate else None
        formats = (format.narrow, format.wide)
        fits = [grid_fitter(each, self.search, h_I) for each in formats]
        rounded = [self._rounded(W_OI, fit, U_II, order) for fit in fits]
        gain_O = row_gains(W_OI, rounded, H_II, G_O)
        wide_K = gain_O.argsort(descending=True, stable=True)[: format.wide_rows(len(W_OI))]
        is_wide_O = torch.zeros(len(W_OI), dtype=torch.bool, device=W_OI.device)
        is_wide_O[wide_K] = True
        narrow, wide = (
            solution_of(W_OI[rows], Q_OI[rows], fit)
            for rows, Q_OI, fit in zip((~is_wide_O, is_wide_O), rounded, fits, strict=True)
        )
        return MixedRowsSolution(is_wide_O=is_wide_O, narrow=narrow, wide=wide)

    def _rounded(self, W_OI: Tensor, fit: GridFitter, U_II: Tensor | None, order: Tensor) -> Tensor:
        """All rows in one width, Q [O, I]: rows do not touch each other."""
        if U_II is None:
            grid = fit(W_OI, slice(None))
            return grid.decode(grid.encode(W_OI, slice(None)), slice(None))
        _, Q_IO, _ = in_static_groups(W_OI, U_II, order, fit)
        if not all_finite(Q_IO):
            raise NumericalError("the compensated weights grew past float32; raise the damping")
        return Q_IO.T.contiguous()


def solution_of(W_RI: Tensor, Q_RI: Tensor, fit: GridFitter) -> GridSolution:
    """The solution of some rows: a grid fitted to them is that fitted to all rows."""
    grid = fit(W_RI, slice(None))
    return GridSolution(codes_OI=grid.encode(Q_RI, slice(None)), grid=grid)


def output_gradient(statistics: Statistics) -> Tensor:
    """G [O]; raises ``NumericalError`` when it is not finite or no gradient reached the site."""
    G_O = statistics.need(Statistic.OUTPUT_GRADIENT)
    if not all_finite(G_O):
        raise NumericalError("the output gradients are not finite")
    if not G_O.any():
        raise NumericalError("no loss gradient reached this site: its rows cannot be ranked")
    return G_O


def row_gains(W_OI: Tensor, rounded: Sequence[Tensor], H_II: Tensor, G_O: Tensor) -> Tensor:
    """Loss that every row saves when it is wide, [O]: 1/2 G_r (d H d^T narrow - d H d^T wide).

    ``rounded``: all rows [O, I] narrow, and wide.
    """
    narrow_O, wide_O = (row_errors(W_hat - W_OI, H_II) for W_hat in rounded)
    return G_O * (narrow_O - wide_O) / 2


METHOD = Mixllm
