"""The column sweep of GPTQ and SparseGPT: fix one column, let those still free make up for it.

Paper:   Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023, Algorithm 1; Frantar, Alistarh,
         "SparseGPT", ICML 2023, Algorithm 1: the same, where fixing a weight may mean zero.
Idea:    With U^T U = inv(Hd), the best answer of the free columns to an error e in column j is
         -e U[j, j+1:] / U[j, j], the same direction for every row.  Far columns are updated once
         per tile, by one matrix product.

Shapes:  I in features, R rows (O, or several weights stacked), J columns of a tile.
Cost:    time O(R I^2), memory one tile beside W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockwright.numerics.column_rounding import ColumnRounder

TILE = 128
"""Columns between two updates of everything to their right (B in the papers)."""


def sweep(W_IR: Tensor, U_II: Tensor, rounder: ColumnRounder, tiles: Sequence[slice]) -> None:
    """Algorithm 1: replace W by Q, in place.

    ``W_IR`` is the weight *transposed*, one column of W to a row, in the order of ``U_II``.  Rows
    of W do not touch each other: weights that share their inputs, or one weight in several formats,
    may be stacked along R (to rounding: the matrix product rounds differently at other sizes).
    """
    for tile in tiles:
        W_JR, U_JJ = W_IR[tile], U_II[tile, tile]
        E_JR = torch.empty_like(W_JR)
        columns, errors = W_JR.unbind(0), E_JR.unbind(0)
        for j, U_jj in enumerate(U_JJ.diagonal().tolist()):
            w, e = columns[j], errors[j]
            q = rounder(tile.start + j, w)
            torch.sub(w, q, out=e).div_(U_jj)  # Eq. (2)
            w.copy_(q)
            W_JR[j + 1 :].addr_(U_JJ[j, j + 1 :], e, alpha=-1)  # Eq. (3)
        W_IR[tile.stop :].addmm_(U_II[tile, tile.stop :].T, E_JR, alpha=-1)


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
