"""The base of methods that learn how to round: they start at round-to-nearest on an affine grid,
whose error is their unit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import check_finite, input_energy
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.losses import quadratic_error
from blockwright.tuning import tune_on_gram
from blockwright.types import (
    Format,
    GridFormat,
    GridSolution,
    LinearMethod,
    Statistic,
    Statistics,
    ZeroPointFormat,
)

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


@dataclass(frozen=True, kw_only=True)
class LearnedRounding(LinearMethod):
    """Training against the Gram of the inputs; it begins and, where nothing is gained, ends with
    rounding to nearest.
    """

    family: ClassVar[str] = "quantize"
    fills: ClassVar[type[Format]] = ZeroPointFormat  # type: ignore[type-abstract]
    name: ClassVar[str]
    """As in candidates, for messages."""

    steps: int = 500
    rate: float = 0.0
    """First learning rate."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise CandidateError(f"option {self.name}@steps: got {self.steps}, needs 0 or more")
        self.check_option("rate", self.rate >= 0, "0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> GridSolution:
        start = self.nearest(W_OI, statistics, format)
        if start.unit == 0 or self.steps == 0:
            return start.solution
        return self.learn(W_OI, start)

    @abstractmethod
    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        """What ``steps`` steps find; the start where they gain nothing."""

    def nearest(self, W_OI: Tensor, statistics: Statistics, format: Format) -> Nearest:
        """The start; raises ``NumericalError`` when W is not finite or no token was seen."""
        check_finite(W_OI)
        input_energy(statistics)
        grid = format.fit_grid(W_OI) if isinstance(format, GridFormat) else None
        if not isinstance(grid, AffineGrid):
            raise CandidateError(f"{self.name} cannot fill {format.name}: it fills affine grids")
        H_II = statistics.need(Statistic.INPUT_GRAM)
        solution = GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)
        return Nearest(H_II, grid, solution, quadratic_error(solution.weight() - W_OI, H_II))

    def tune(
        self,
        weight: Callable[[], Tensor],
        leaves: Sequence[tuple[Tensor, float]],
        W_OI: Tensor,
        start: Nearest,
        *,
        judged: Callable[[], Tensor] | None = None,
        extra_loss: Callable[[float], Tensor] | None = None,
    ) -> float:
        """Train ``leaves`` (and their rates) until ``weight`` is near W; the error left."""
        return tune_on_gram(
            weight,
            leaves,
            W_OI,
            start.H_II,
            unit=start.unit,
            steps=self.steps,
            checks=CHECKS,
            judged=judged,
            extra_loss=extra_loss,
        )

    def check_option(self, option: str, allowed: bool, needs: str) -> None:
        """Raise ``CandidateError`` for an option that is not allowed, or not finite."""
        value = getattr(self, option)
        if not (allowed and value < float("inf")):
            raise CandidateError(f"option {self.name}@{option}: got {value}, needs {needs}")
