"""Rtn: every weight to the nearest value of its group's grid.

Paper:   none; the baseline of every quantization paper.
Idea:    Fix each group's range, then round each weight alone.  On a given grid that is optimal when
         inputs are uncorrelated; otherwise errors within a row could cancel, which is what GPTQ and
         the learned methods win on.  Searching the range clips a few large weights for a finer grid
         of the others.

Equations -> code
    s, z = range(W)            fit_grid     per group of each row; `search` shrinks it
    c = clip(round(W/s) + z)   encode
Shapes:  O out features, I in features, J columns.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   nothing; INPUT_GRAM (its diagonal) with search=gram.   Fills: every format
         of single elements.
Cost:    time O(O I), times the ranges tried when searching; memory one copy of W.
Differs from the paper: nothing known.
Raises:  NumericalError when W is not finite, or with search=gram when no token reached the site.
Checked: tests/claims/test_quantize.py: idempotent, within half a step, error per bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import (
    Search,
    check_finite,
    check_search,
    grid_fitter,
    input_energy,
)
from blockwright.types import (
    Format,
    GridFormat,
    GridSolution,
    LinearMethod,
    Solution,
    Statistic,
    Statistics,
    ValueFormat,
)


@dataclass(frozen=True, kw_only=True)
class Rtn(LinearMethod):
    """Round to nearest."""

    paper: ClassVar[str] = "baseline"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = ValueFormat  # type: ignore[type-abstract]

    search: Search = "none"

    def __post_init__(self) -> None:
        check_search("rtn", self.search)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM}) if self.search == "gram" else frozenset()

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> Solution:
        check_finite(W_OI)
        if not isinstance(format, GridFormat):
            if isinstance(format, ValueFormat):
                return format.nearest(W_OI)
            raise CandidateError(f"rtn cannot fill {format.name}: it rounds element by element")
        h_I = input_energy(statistics) if self.search == "gram" else None
        grid = grid_fitter(format, self.search, h_I)(W_OI, slice(None))
        return GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)


METHOD = Rtn
