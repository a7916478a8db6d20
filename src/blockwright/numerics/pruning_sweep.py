"""SparseGPT's sweep over the columns of a weight: it prunes, rounds, or both.

Paper:   Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
         One-Shot", ICML 2023, Algorithm 1 and section 3.5.
Idea:    Fixing a column to what is stored of it, a zero or a rounded value, leaves an error that
         the columns still free make up for.  A mask may be given: then it is only rounded.

Equations -> code
    w^2 / U_jj^2            MaskedColumns  cost at the first column of a pattern, or of a tile
    mask . quantize(w)      Pruner         sparsity and quantization jointly
    U                       Pruner.of      U^T U = inv(H + damping mean(diag H) I)
Shapes:  O out features, I in features, J columns of a pattern or tile, K kept per row.
Cost:    time O(O I^2), and O(I^3) once for a Gram; memory three copies of the Gram, four of W.
Raises:  NumericalError when H cannot be factored or the weights outgrow float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.column_rounding import ColumnRounder, column_rounder
from blockwright.numerics.column_sweep import TILE, sweep, tiles_of
from blockwright.numerics.finite import all_finite
from blockwright.numerics.inverse_hessian import upper_factor
from blockwright.types import Grid, GridFormat, GridSolution, MaskedFormat, MaskedSolution


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
        """bool [O, J]: of least sum w^2 / inv(H)_jj, what zeroing w as it now is costs."""
        if self.mask_given:
            return self.mask_IO[columns].T
        score_OJ = (self.W_IO[columns] / self.pivot_I[columns, None]).T.abs()
        before = self.format.kept(columns.start)
        return self.format.best_mask(score_OJ, self.format.kept(columns.stop) - before)

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

    @classmethod
    def of(cls, H_II: Tensor, damping: float) -> Pruner:
        """Raises ``NumericalError`` where H cannot be factored."""
        U_II = upper_factor(H_II, damping)
        return cls(U_II, torch.where(H_II.diagonal() > 0, U_II.diagonal(), float("inf")))

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
