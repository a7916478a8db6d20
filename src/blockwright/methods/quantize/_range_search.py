"""The ``search`` option that the quantizers share: how ranges are clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.finite import all_finite
from blockwright.types import Grid, GridFormat, Statistic, Statistics

Search = Literal["none", "mse", "gram"]
"""How a group's range is found.

none: from minimum to maximum.  mse: of the shrunken ranges the one of least squared error.  gram:
the same with every error weighted by E[x_i^2], the diagonal of the input Gram: the squared error of
the output where inputs are uncorrelated.
"""


GridFitter = Callable[[Tensor, slice], Grid]
"""(weights [O, J], their columns: whole groups) -> the grid of these columns."""


def check_search(method: str, search: str) -> None:
    """Raise ``CandidateError`` for an unknown search."""
    if search not in get_args(Search):
        raise CandidateError(
            f"option {method}@search: got {search!r}, allowed: {', '.join(get_args(Search))}"
        )


def input_energy(statistics: Statistics) -> Tensor:
    """diag(H) = E[x_i^2], [I]; raises ``NumericalError`` when no token reached the site."""
    if statistics.tokens == 0:
        raise NumericalError("no calibration token reached this site: there is no input Gram")
    return statistics.need(Statistic.INPUT_GRAM).diagonal()


def check_finite(W_OI: Tensor) -> None:
    """Raise ``NumericalError`` for a weight with NaN or infinity."""
    if not all_finite(W_OI):
        raise NumericalError("the weight holds NaN or infinity")


def grid_fitter(format: GridFormat, search: Search, h_I: Tensor | None) -> GridFitter:
    """Fits grids with the ranges searched; ``h_I`` is read with search=gram only."""

    def fit(W_OJ: Tensor, columns: slice) -> Grid:
        importance = h_I[columns] if search == "gram" and h_I is not None else None
        return format.fit_grid(W_OJ, search=search != "none", importance_I=importance)

    return fit
