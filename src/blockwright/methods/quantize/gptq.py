"""Gptq: round column after column; the columns still free make up for each rounding error.

Paper:   Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
         Generative Pre-trained Transformers", ICLR 2023.
Idea:    What counts is the output W x, not W.  After a column is rounded, the best change of the
         columns not yet rounded follows from the inverse Hessian of the inputs, in the same
         direction for every row.  It wins where inputs are correlated, as activations are; with
         H = I it is rounding to nearest.  With fewer tokens than inputs H is singular, and the
         damping decides.

Equations -> code
    Eq. (2), (3)   column_sweep   error of a column, update of the columns still free
    Algorithm 1    column_sweep   tiles of 128 columns; those to the right updated once per tile,
                                  those of the tile once per strip of 16
    U              upper_factor   U^T U = inv(H + damping mean(diag H) I)
Shapes:  O out features, R rows (O, or several weights stacked), I in features, J columns of a tile.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every grid format.
Cost:    time O(O I^2 + I^3), memory three copies of the Gram (the caller's included), three of W.
Differs from the paper:
    1. Inputs are taken by falling energy h = diag H (`act_order`, from the authors' code): what
       matters most is rounded while all other columns can still make up for it.  Groups then are
       *static*: their ranges come from the original W, so that groups stay contiguous and no order
       is stored.
    2. In natural order a group's range is fitted to its compensated weights when its first column
       is reached (the authors' code, for groups).
    3. `search` may clip ranges, off by default.
    4. An input that never fired is rounded to nearest: nothing depends on it.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: error against rounding to nearest, equality with it for H = I, agreement with the plain
         column loop: tests/claims/test_quantize.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
from blockwright.numerics.column_rounding import ColumnRounder, column_rounder
from blockwright.numerics.column_sweep import sweep, tiles_of
from blockwright.numerics.finite import all_finite
from blockwright.numerics.inverse_hessian import factor_damped
from blockwright.types import (
    Format,
    Grid,
    GridFormat,
    GridSolution,
    LinearMethod,
    Statistic,
    Statistics,
)


@dataclass
class DynamicGroups:
    """A column rounder whose groups are fitted, to the weights as they are, when first reached."""

    fit: GridFitter
    W_IR: Tensor
    """What the sweep works on."""
    group_size: int
    grid: Grid
    """The groups fitted so far; the others as they were given."""
    _rounder: ColumnRounder = field(init=False)

    def __call__(self, j: int, w_R: Tensor) -> Tensor:
        first = j - j % self.group_size
        if j == first:
            columns = slice(first, min(first + self.group_size, len(self.W_IR)))
            group = self.fit(self.W_IR[columns].T.contiguous(), columns)
            self.grid = self.grid.replaced(columns, group)
            self._rounder = column_rounder(group, torch.arange(columns.stop - columns.start))
        return self._rounder(j - first, w_R)


@dataclass(frozen=True, kw_only=True)
class Gptq(LinearMethod):
    """GPTQ: optimal compensation of rounding errors, column by column."""

    paper: ClassVar[str] = "Frantar et al., GPTQ, ICLR 2023"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = GridFormat  # type: ignore[type-abstract]

    damping: float = 0.01
    act_order: bool = True
    search: Search = "none"

    def __post_init__(self) -> None:
        check_search("gptq", self.search)
        if not 0 < self.damping < float("inf"):
            raise CandidateError(f"option gptq@damping: got {self.damping}, needs a number above 0")

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
        h_I = input_energy(statistics)
        order = torch.argsort(h_I, descending=True, stable=True)
        order = order if self.act_order else torch.arange(len(h_I), device=h_I.device)
        H_II = statistics.need(Statistic.INPUT_GRAM)
        U_II, added_I = factor_damped(H_II, self.damping, order=order)
        for format in formats:
            if not isinstance(format, GridFormat):
                raise CandidateError(f"gptq cannot fill {format.name}: it fills grid formats")
            fit = grid_fitter(format, self.search, h_I)
            if self.act_order:
                grid, W_IO, damped_O = in_static_groups(W_OI, U_II, order, fit)
            else:
                grid, W_IO, damped_O = in_dynamic_groups(W_OI, U_II, format, fit)
            if not all_finite(W_IO):
                raise NumericalError("the compensated weights grew past float32; raise the damping")
            codes_OI = grid.encode(W_IO.T, slice(None))
            error_O = damped_O - added_I @ W_IO.sub_(W_OI.T).square_()
            yield GridSolution(codes_OI=codes_OI, grid=grid, errors_O=error_O.clamp_(min=0))


def in_dynamic_groups(
    W_OI: Tensor, U_II: Tensor, format: GridFormat, fit: GridFitter
) -> tuple[Grid, Tensor, Tensor]:
    """``in_static_groups`` in natural order, fitting each group when it is reached."""
    W_IO = W_OI.T.contiguous()
    group_size = format.group_size or len(W_IO)
    groups = DynamicGroups(fit, W_IO, group_size, format.fit_grid(W_OI))
    tiles = tiles_of(len(W_IO), group_size)
    error_O = sweep(W_IO, U_II, groups, tiles, sees=group_size)
    return groups.grid, W_IO, error_O


METHOD = Gptq
