"""GPTQ's sweep on a grid that is fitted once, to the original weight."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.methods.quantize._range_search import GridFitter
from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import sweep, tiles_of
from blockwright.types import Grid


def in_static_groups(
    W_OI: Tensor, U_II: Tensor, order: Tensor, fit: GridFitter
) -> tuple[Grid, Tensor, Tensor]:
    """Sweep in ``order`` on a grid fitted to the original weight.

    Returns the grid, Q^T [I, O], and the squared output error of every row under Hd [O].
    """
    grid = fit(W_OI, slice(None))
    W_IO = W_OI.T[order]
    error_O = sweep(W_IO, U_II, column_rounder(grid, order), tiles_of(len(W_IO)))
    return grid, W_IO[torch.argsort(order)], error_O
