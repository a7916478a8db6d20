"""QuantEase: GPTQ's codes and scales improved in turns, until neither can gain much.

Paper:   Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase: Optimization-based
         Quantization for Language Models", 2023.
Idea:    GPTQ fixes every column once, and on ranges that were chosen before.  The squared output
         error is a parabola in one column, and in all scales of a row, when the rest is fixed: both
         have a best value in closed form.  So scales are fitted to the codes and codes found anew
         on these scales, first by GPTQ's sweep, which can leave a bad solution, then by coordinate
         descent, which never raises the error.  Most is gained where groups have few levels.  Least
         squares shrinks outputs, the same way for all tokens, which a model feels more than noise
         of the same size: in the end every row is scaled up until it follows the original.

Equations -> code
    Eq. (6)-(8)    descend        best value of one column, others fixed
    A s = b        refit_scales   best scales of a row, codes fixed
    start          sweep          GPTQ, inputs by falling energy
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every grid format; scales are fitted on affine grids.
Cost:    time a sweep and two products O(O I^2) per round and pass, memory as GPTQ and four more
         copies of W.
Differs from the paper:
    1. It starts from GPTQ, the paper from the weight itself.
    2. Scales are fitted to the codes, which the paper leaves at their ranges (after "Two-Stage Grid
       Optimization for Group-wise Quantization of LLMs", ICASSP 2026).
    3. The Gram is damped as for GPTQ: what is fitted to it shall hold for other inputs.
    4. Of every row the best state is kept, GPTQ's included: never worse in any row, before rows
       are scaled.
    5. Rows are scaled in the end (``unbiased``).
    6. The outlier-aware variant is left out: no format stores single weights apart.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: error against GPTQ's, never above it: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import check_finite, input_energy
from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import sweep, tiles_of
from blockwright.numerics.coordinate_descent import descend
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.inverse_hessian import damped, upper_factor
from blockwright.numerics.losses import row_errors
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.numerics.scale_refit import following_gain, refit_scales
from blockwright.types import (
    Format,
    Grid,
    GridFormat,
    GridSolution,
    LinearMethod,
    Statistic,
    Statistics,
    ZeroPointFormat,
)


@dataclass(frozen=True, kw_only=True)
class QuantEase(LinearMethod):
    """Codes by GPTQ and coordinate descent, scales by least squares, in turns."""

    paper: ClassVar[str] = "Behdin et al., QuantEase, 2023"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = GridFormat  # type: ignore[type-abstract]

    damping: float = 0.01
    rounds: int = 8
    """Times that scales are fitted and GPTQ sweeps again on them."""
    passes: int = 3
    """Passes of coordinate descent, scales fitted after each."""
    unbiased: bool = True
    """Whether rows are scaled up in the end, so that their outputs follow the original's one to
    one, at a little more error."""

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise CandidateError(
                f"option quantease@damping: got {self.damping}, needs a number above 0"
            )
        for name in ("rounds", "passes"):
            if getattr(self, name) < 0:
                raise CandidateError(
                    f"option quantease@{name}: got {getattr(self, name)}, needs 0 or more"
                )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> GridSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[GridSolution]:
        """``solve`` for one format after another, bit for bit; the inverse Hessian is shared."""
        check_finite(W_OI)
        order = torch.argsort(input_energy(statistics), descending=True, stable=True)
        H_II = statistics.need(Statistic.INPUT_GRAM)
        U_II = upper_factor(H_II, self.damping, order=order)
        H_II = damped(H_II, self.damping)
        for format in formats:
            if not isinstance(format, GridFormat):
                raise CandidateError(f"quantease cannot fill {format.name}: it fills grid formats")
            layer = _Layer(W_OI, H_II, U_II, order, isinstance(format, ZeroPointFormat))
            best = _Best(layer, layer.swept(format.fit_grid(W_OI)))
            for _ in range(self.rounds if layer.free_scales else 0):
                best.take(layer.swept(layer.refitted(best.last).grid))
            for _ in range(self.passes):
                best.take(layer.refitted(layer.descended(best.last)))
            yield layer.unbiased(best.solution()) if self.unbiased else best.solution()


@dataclass(frozen=True)
class _Layer:
    """A weight and the damped Gram of its inputs."""

    W_OI: Tensor
    H_II: Tensor
    U_II: Tensor
    """Of the inverse, in ``order``."""
    order: Tensor
    free_scales: bool
    """Whether the format stores any scale."""

    def swept(self, grid: Grid) -> GridSolution:
        """GPTQ on a given grid."""
        W_IO = self.W_OI.T[self.order]
        sweep(W_IO, self.U_II, column_rounder(grid, self.order), tiles_of(len(W_IO)))
        return self._encoded(W_IO, grid)

    def descended(self, last: GridSolution) -> GridSolution:
        """One pass of coordinate descent."""
        order, W_IO, Q_IO = self.order, self.W_OI.T, last.weight().T
        Q_IO = Q_IO[order]
        H_II = self.H_II[order[:, None], order]
        rounder = column_rounder(last.grid, order)
        descend(Q_IO, W_IO[order], H_II, rounder, tiles_of(len(Q_IO)))
        return self._encoded(Q_IO, last.grid)

    def refitted(self, last: GridSolution) -> GridSolution:
        """The codes with their best scales; as it is where scales are not free."""
        if not self.free_scales or not isinstance(last.grid, AffineGrid):
            return last
        grid = refit_scales(self.W_OI, last.codes_OI, last.grid, self.H_II)
        return GridSolution(codes_OI=last.codes_OI, grid=grid)

    def unbiased(self, found: GridSolution) -> GridSolution:
        """Rows scaled so that E[y_hat y] = E[y^2]; least squares leaves the former smaller."""
        if not self.free_scales or not isinstance(found.grid, AffineGrid):
            return found
        gain_O = following_gain(self.W_OI, found.weight(), self.H_II)
        scale = (found.grid.scale * gain_O[:, None]).to(SCALE_DTYPE).float()
        return GridSolution(codes_OI=found.codes_OI, grid=replace(found.grid, scale=scale))

    def errors(self, found: GridSolution) -> Tensor:
        """[O]"""
        return row_errors(found.weight() - self.W_OI, self.H_II)

    def _encoded(self, Q_IO: Tensor, grid: Grid) -> GridSolution:
        Q_OI = Q_IO[torch.argsort(self.order)].T
        return GridSolution(codes_OI=grid.encode(Q_OI, slice(None)).contiguous(), grid=grid)


class _Best:
    """The best state of every row so far; ``last`` is where the search goes on."""

    def __init__(self, layer: _Layer, start: GridSolution) -> None:
        self._layer, self.last = layer, start
        self.grid, self._codes_OI = start.grid, start.codes_OI.clone()
        self._errors_O = layer.errors(start)

    def take(self, found: GridSolution) -> None:
        """Go on from here; rows that are better are kept."""
        self.last = found
        errors_O = self._layer.errors(found)
        better_O = errors_O < self._errors_O
        self._errors_O = torch.where(better_O, errors_O, self._errors_O)
        better_O1 = better_O[:, None]
        self._codes_OI = torch.where(better_O1, found.codes_OI, self._codes_OI)
        if isinstance(self.grid, AffineGrid) and isinstance(found.grid, AffineGrid):
            scale = torch.where(better_O1, found.grid.scale, self.grid.scale)
            self.grid = replace(self.grid, scale=scale)

    def solution(self) -> GridSolution:
        """Every row as it was best."""
        return GridSolution(codes_OI=self._codes_OI, grid=self.grid)


METHOD = QuantEase
