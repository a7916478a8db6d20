"""Sparsegpt: prune column after column; the columns still free make up for each zero.

Paper:   Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
         One-Shot", ICML 2023.
Idea:    GPTQ's sweep, where fixing a weight may mean zero.  Which weights go is decided late, from
         the weights as earlier columns left them: w^2 / inv(H)_jj is what zeroing costs once
         the free columns have answered.  Quantized values are rounded in the same sweep, so that
         their errors, too, are made up for.  The kept set leans slightly to the right.

Equations -> code
    Algorithm 1             column_sweep   fix a column, update those still free
    w^2 / U_jj^2            MaskedColumns  score at the first column of a pattern, or of a tile
    mask . quantize(w)      MaskedColumns  section 3.5: sparsity and quantization jointly
    U                       upper_factor   U^T U = inv(H + damping mean(diag H) I)
Shapes:  O out features, I in features, J columns of a pattern or tile, K kept per row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time O(O I^2 + I^3) and that of the refit, memory three copies of the Gram, four of W.
Differs from the paper:
    1. Without a pattern every row keeps equally many weights of a tile of 128 columns; the paper
       chooses among all rows of it.
    2. The kept values are refitted on the final mask unless they are quantized or refit=false.
    3. Grids of quantized values are fitted when a group of kept values is reached, to the weights
       that a mask chosen there would keep.
    4. Inputs that never fired go first; where they stay, they keep their weight.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: tests/claims/test_sparsify.py: error against Wanda, refit never worse.
"""

from __future__ import annotations

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
    masked_solution,
)
from blockwright.numerics.column_rounding import ColumnRounder, column_rounder
from blockwright.numerics.column_sweep import TILE, sweep, tiles_of
from blockwright.numerics.finite import all_finite
from blockwright.numerics.inverse_hessian import upper_factor
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
    """bool: what stays, decided up to the column last asked for."""
    grid: Grid | None = None
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
        """bool [O, J]: what zeroing costs least stays not, w^2 / inv(H)_jj of w as it now is."""
        score_OJ = (self.W_IO[columns] / self.pivot_I[columns, None]).T.square()
        if self.format.pattern_size:
            return self.format.best_mask(score_OJ)
        return keep_per_row(
            score_OJ, self.format.kept(columns.stop) - self.format.kept(columns.start)
        )

    def fit_group(self, columns: slice, grid: Grid) -> Grid:
        """The grid with the group of these columns fitted to what a mask chosen now would keep."""
        mask_OJ, values = self.best_mask(columns), self.format.values
        if not isinstance(values, GridFormat):
            raise TypeError(f"{values.name} has no grid")
        kept_OK = self.W_IO[columns].T[mask_OJ].view(len(mask_OJ), -1)
        group = values.fit_grid(kept_OK, search=True)
        # Values of one pattern share a group: the place of its first stands for all of them.
        places = [self.format.kept(j) for j in range(columns.stop - columns.start)]
        places = places if values.group_size else [0] * len(places)
        self._rounder = column_rounder(group, torch.tensor(places))
        kept = slice(self.format.kept(columns.start), self.format.kept(columns.stop))
        return grid.replaced(kept, group)


def group_inputs(format: MaskedFormat) -> int:
    """Inputs whose kept values share a grid, whole patterns; 0 = the whole row, or no grid."""
    values, pattern = format.values, format.pattern_size
    grouped = values.group_size if isinstance(values, GridFormat) else 0
    return grouped * pattern // format.kept(pattern) if grouped else 0


@dataclass(frozen=True, kw_only=True)
class Sparsegpt(LinearMethod):
    """Prune in a compensating sweep."""

    paper: ClassVar[str] = "Frantar and Alistarh, SparseGPT, ICML 2023"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
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
        for format in formats:
            target = masked_format("sparsegpt", format)
            columns = pruned_columns(W_OI, U_II, pivot_I, target)
            mask_OI, W_hat_OI = columns.mask_IO.T.contiguous(), columns.W_IO.T
            if not all_finite(W_hat_OI):
                raise NumericalError("the compensated weights grew past float32; raise the damping")
            if columns.grid is not None:
                codes = columns.grid.encode(W_hat_OI[mask_OI].view(len(W_OI), -1), slice(None))
                values = GridSolution(codes_OI=codes, grid=columns.grid)
                yield MaskedSolution(mask_OI=mask_OI, values=values)
            elif self.refit:
                yield masked_solution(W_OI, mask_OI, target, statistics, self.damping)
            else:
                yield masked_solution(W_hat_OI, mask_OI, target, statistics, 0.0)


def pruned_columns(
    W_OI: Tensor, U_II: Tensor, pivot_I: Tensor, format: MaskedFormat
) -> MaskedColumns:
    """Algorithm 1: the swept weight with its mask, and its grid if the values have one."""
    W_IO = W_OI.T.contiguous()
    unset = torch.zeros(W_IO.shape, dtype=torch.bool, device=W_IO.device)
    columns = MaskedColumns(W_IO, pivot_I, format, unset)
    if isinstance(format.values, GridFormat):
        columns.grid = format.values.fit_grid(W_OI[:, : format.kept(len(W_IO))])
    group = group_inputs(format) or len(W_IO)
    sweep(W_IO, U_II, columns, tiles_of(len(W_IO), group if group < len(W_IO) else TILE))
    return columns


METHOD = Sparsegpt
