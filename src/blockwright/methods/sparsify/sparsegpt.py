"""Sparsegpt: prune column after column; the columns still free make up for each zero.

Paper:   Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
         One-Shot", ICML 2023.
Idea:    GPTQ's sweep, where fixing a weight may mean zero.  Which weights go is decided late, from
         the weights as earlier columns left them: w^2 / inv(H)_jj is what zeroing costs once
         the free columns have answered.  Quantized values are rounded in a sweep, so that their
         errors, too, are made up for.  The kept set leans slightly to one side.

Equations -> code
    Algorithm 1             column_sweep   fix a column, update those still free
    w^2 / U_jj^2            MaskedColumns  score at the first column of a pattern, or of a tile
    mask . quantize(w)      Pruner         section 3.5: sparsity and quantization jointly
    U                       upper_factor   U^T U = inv(H + damping mean(diag H) I)
Shapes:  O out features, I in features, J columns of a pattern or tile, K kept per row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time O(O I^2 + I^3) and that of the refit, memory three copies of the Gram, four of W.
Differs from the paper:
    1. Without a pattern every row keeps equally many weights of a tile of 128 columns; the paper
       chooses among all rows of it.
    2. The kept values are refitted on the final mask (refit=false: as the sweep left them).
    3. Quantized values are rounded in a second sweep, from the refitted ones, on the mask of the
       first: with equal support the error is that of the refit plus that of the rounding, and the
       sweep lowers the latter.  refit=false is the paper's single sweep.
    4. Grids of quantized values are fitted when a group of kept values is reached.
    5. Inputs that never fired go first; where they stay, they keep their weight.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: tests/claims/test_sparsify.py: error against Wanda, refit never worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
)
from blockwright.numerics.column_rounding import ColumnRounder, column_rounder
from blockwright.numerics.column_sweep import TILE, sweep, tiles_of
from blockwright.numerics.finite import all_finite
from blockwright.numerics.inverse_hessian import upper_factor
from blockwright.numerics.masked_refit import masked_refit
from blockwright.numerics.masks import keep_per_row
from blockwright.types import (
    Format,
    Grid,
    GridFormat,
    GridSolution,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)


@dataclass
class MaskedColumns:
    """A column rounder that prunes, and rounds what stays to a grid of its own if there is one."""

    W_IO: Tensor
    """What the sweep works on."""
    pivot_I: Tensor  # noqa: N815 - shape suffix
    """U_jj; infinite for inputs that never fired."""
    format: MaskedFormat
    mask_IO: Tensor  # noqa: N815 - shape suffix
    """bool: what stays, decided up to the column last asked for unless it was given."""
    mask_given: bool
    grid: Grid | None
    """Of the kept values [O, K]; its groups are replaced as they are reached."""
    _rounder: ColumnRounder | None = field(init=False, default=None)

    def __call__(self, j: int, w_O: Tensor) -> Tensor:
        step = self.format.pattern_size or TILE
        if j % step == 0:
            columns = slice(j, min(j + step, len(self.W_IO)))
            self.mask_IO[columns] = self.best_mask(columns).T
        group = group_inputs(self.format) or len(self.W_IO)
        if self.grid is not None and j % group == 0:
            columns = slice(j, min(j + group, len(self.W_IO)))
            self.grid = self.fit_group(columns, self.grid)
        q_O = w_O if self._rounder is None else self._rounder(j % group, w_O)
        return q_O * self.mask_IO[j]

    def best_mask(self, columns: slice) -> Tensor:
        """bool [O, J]: of largest w^2 / inv(H)_jj, what zeroing w as it now is would cost."""
        if self.mask_given:
            return self.mask_IO[columns].T
        score_OJ = (self.W_IO[columns] / self.pivot_I[columns, None]).T.square()
        if self.format.pattern_size:
            return self.format.best_mask(score_OJ)
        before = self.format.kept(columns.start)
        return keep_per_row(score_OJ, self.format.kept(columns.stop) - before)

    def fit_group(self, columns: slice, grid: Grid) -> Grid:
        """The grid with the group of these columns fitted to what a mask chosen now would keep."""
        mask_OJ, values = self.best_mask(columns), self.format.values
        if not isinstance(values, GridFormat):
            raise TypeError(f"{values.name} has no grid")
        kept_OK = self.W_IO[columns].T[mask_OJ].view(len(mask_OJ), -1)
        group = values.fit_grid(kept_OK, search=True)
        # One group alone: whichever place a kept value has in it, its scale is that of place 0.
        places = torch.zeros(columns.stop - columns.start, dtype=torch.int64)
        self._rounder = column_rounder(group, places)
        kept = slice(self.format.kept(columns.start), self.format.kept(columns.stop))
        return grid.replaced(kept, group)


def group_inputs(format: MaskedFormat) -> int:
    """Inputs whose kept values share a grid, whole patterns; 0 = the whole row, or no grid."""
    values, pattern = format.values, format.pattern_size
    grouped = values.group_size if isinstance(values, GridFormat) else 0
    return grouped * pattern // format.kept(pattern) if grouped else 0


@dataclass(frozen=True)
class Pruner:
    """Algorithm 1 for one Gram: ``pivot_I`` as in ``MaskedColumns``."""

    U_II: Tensor
    pivot_I: Tensor  # noqa: N815 - shape suffix

    def mask(self, W_OI: Tensor, format: MaskedFormat) -> tuple[Tensor, Tensor]:
        """The mask, and the weight as the sweep left it, zero off the mask; nothing is rounded."""
        swept = self._swept(W_OI, format, mask_OI=None, grid=None)
        return swept.mask_IO.T.contiguous(), swept.W_IO.T.contiguous()

    def quantize(
        self, W_OI: Tensor, format: MaskedFormat, values: GridFormat, mask_OI: Tensor | None
    ) -> MaskedSolution:
        """Prune (unless the mask is given) and round in one sweep."""
        grid = values.fit_grid(W_OI[:, : format.kept(W_OI.shape[1])])
        swept = self._swept(W_OI, format, mask_OI, grid)
        found_OI, grid = swept.mask_IO.T.contiguous(), swept.grid or grid
        codes_OK = grid.encode(swept.W_IO.T[found_OI].view(len(W_OI), -1), slice(None))
        return MaskedSolution(mask_OI=found_OI, values=GridSolution(codes_OI=codes_OK, grid=grid))

    def _swept(
        self, W_OI: Tensor, format: MaskedFormat, mask_OI: Tensor | None, grid: Grid | None
    ) -> MaskedColumns:
        W_IO = W_OI.T.contiguous()
        undecided = torch.zeros(W_IO.shape, dtype=torch.bool, device=W_IO.device)
        mask_IO = undecided if mask_OI is None else mask_OI.T.contiguous()
        columns = MaskedColumns(W_IO, self.pivot_I, format, mask_IO, mask_OI is not None, grid)
        group = group_inputs(format) or TILE
        sees = math.gcd(format.pattern_size or TILE, group)
        sweep(W_IO, self.U_II, columns, tiles_of(len(W_IO), group), sees=sees)
        if not all_finite(W_IO):
            raise NumericalError("the compensated weights grew past float32; raise the damping")
        return columns


@dataclass(frozen=True, kw_only=True)
class Sparsegpt(LinearMethod):
    """Prune in a compensating sweep."""

    paper: ClassVar[str] = "Frantar and Alistarh, SparseGPT, ICML 2023"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    refit: bool = True
    damping: float = 0.01
    """Of the sweep and the refit."""

    def __post_init__(self) -> None:
        check_damping("sparsegpt", self.damping)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[MaskedSolution]:
        """``solve`` for one format after another, bit for bit; the inverse Hessian is shared."""
        check_finite(W_OI)
        H_II = input_gram(statistics)
        U_II = upper_factor(H_II, self.damping)
        pivot_I = torch.where(H_II.diagonal() > 0, U_II.diagonal(), float("inf"))
        pruner = Pruner(U_II, pivot_I)
        for format in formats:
            yield self._solution(W_OI, H_II, pruner, masked_format("sparsegpt", format))

    def _solution(
        self, W_OI: Tensor, H_II: Tensor, pruner: Pruner, format: MaskedFormat
    ) -> MaskedSolution:
        values = format.values
        if isinstance(values, GridFormat) and not self.refit:
            return pruner.quantize(W_OI, format, values, None)
        mask_OI, kept_OI = pruner.mask(W_OI, format)
        if self.refit:
            kept_OI = masked_refit(W_OI, H_II, mask_OI, self.damping)
        if isinstance(values, GridFormat):
            return pruner.quantize(kept_OI, format, values, mask_OI)
        kept_OK = kept_OI[mask_OI].view(len(W_OI), -1)
        return MaskedSolution(mask_OI=mask_OI, values=values.nearest(kept_OK))


METHOD = Sparsegpt
