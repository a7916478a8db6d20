"""Where the learned methods start: round-to-nearest on an affine grid, and its error as a unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import check_finite, input_energy
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.losses import quadratic_error
from blockwright.types import Format, GridFormat, GridSolution, Statistic, Statistics

CHECKS = 50
"""Moments of training that are judged: what is rounded jumps from step to step."""


@dataclass(frozen=True)
class Nearest:
    """A weight rounded to nearest."""

    H_II: Tensor
    grid: AffineGrid
    solution: GridSolution
    unit: float
    """Its error, tr(D H D^T): what rates and regularizers are relative to; 0 when it is exact."""


def nearest(method: str, W_OI: Tensor, statistics: Statistics, format: Format) -> Nearest:
    """The start; raises ``NumericalError`` when W is not finite or no token reached the site."""
    check_finite(W_OI)
    input_energy(statistics)
    grid = format.fit_grid(W_OI) if isinstance(format, GridFormat) else None
    if not isinstance(grid, AffineGrid):
        raise CandidateError(f"{method} cannot fill {format.name}: it fills affine grids")
    H_II = statistics.need(Statistic.INPUT_GRAM)
    solution = GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)
    return Nearest(H_II, grid, solution, quadratic_error(solution.weight() - W_OI, H_II))


def check_steps(method: str, steps: int, rate: float) -> None:
    """Raise ``CandidateError`` for options that train nothing."""
    if steps < 0:
        raise CandidateError(f"option {method}@steps: got {steps}, needs 0 or more")
    if not 0 <= rate < float("inf"):
        raise CandidateError(f"option {method}@rate: got {rate}, needs 0 (default) or more")
