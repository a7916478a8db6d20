"""The column sweep of GPTQ and SparseGPT: fix one column, let those still free make up for it.

Paper:   Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023, Algorithm 1; Frantar, Alistarh,
         "SparseGPT", ICML 2023, Algorithm 1: the same, where fixing a weight may mean zero.
Idea:    With U^T U = inv(Hd), the best answer of the free columns to an error e in column j is
         -e U[j, j+1:] / U[j, j], the same direction for every row.  Far columns are updated once
         per tile, by one matrix product, and within a tile once per strip.

Shapes:  I in features, R rows (O, or several weights stacked), J columns of a tile.
Cost:    time O(R I^2), memory one tile beside W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockwright.numerics.column_rounding import ColumnRounder

TILE = 128
"""Columns between two updates of everything to their right (B in the papers)."""
STRIP = 16
"""Columns between two updates of the rest of their tile: what is done column by column touches no
more than these."""


def sweep(
    W_IR: Tensor,
    U_II: Tensor,
    rounder: ColumnRounder,
    tiles: Sequence[slice],
    *,
    sees: int = TILE,
) -> Tensor:
    """Algorithm 1: replace W by Q, in place; the squared output error of every row, under Hd.

    It costs nothing: all that was taken from W is E U, so that (W - Q) Hd (W - Q)^T is E E^T.

    ``W_IR`` is the weight *transposed*, one column of W to a row, in the order of ``U_II``.  Rows
    of W do not touch each other: weights that share their inputs, or one weight in several formats,
    may be stacked along R (to rounding: the matrix product rounds differently at other sizes).

    ``sees``: the rounder looks at columns to the right of its own at multiples of this, if at all.
    """
    strip = math.gcd(STRIP, sees)
    error_R = W_IR.new_zeros(W_IR.shape[1])
    for tile in tiles:
        W_JR, U_JJ = W_IR[tile], U_II[tile, tile]
        E_JR = torch.empty_like(W_JR)
        columns, errors, pivots = W_JR.unbind(0), E_JR.unbind(0), U_JJ.diagonal().tolist()
        for start in range(0, len(W_JR), strip):
            stop = min(start + strip, len(W_JR))
            for j in range(start, stop):
                w, e = columns[j], errors[j]
                q = rounder(tile.start + j, w)
                torch.sub(w, q, out=e).div_(pivots[j])  # Eq. (2)
                w.copy_(q)
                W_JR[j + 1 : stop].addr_(U_JJ[j, j + 1 : stop], e, alpha=-1)  # Eq. (3)
            W_JR[stop:].addmm_(U_JJ[start:stop, stop:].T, E_JR[start:stop], alpha=-1)
        W_IR[tile.stop :].addmm_(U_II[tile, tile.stop :].T, E_JR, alpha=-1)
        error_R += E_JR.square_().sum(0)
    return error_R


def tiles_of(in_features: int, group_size: int = 1) -> list[slice]:
    """Tiles of at most ``TILE`` columns: whole groups, or parts of one that starts with a tile.

    So at the first column of a group all its weights are up to date.
    """
    if group_size <= TILE:
        width = TILE - TILE % group_size
        edges = list(range(0, in_features, width))
    else:
        groups = range(0, in_features, group_size)
        edges = [j for g in groups for j in range(g, min(g + group_size, in_features), TILE)]
    return [slice(a, b) for a, b in zip(edges, [*edges[1:], in_features], strict=True)]
