"""Coordinate descent on rounded weights: one column after another takes its best value.

Paper:   Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase: Optimization-based
         Quantization for Language Models", 2023, Algorithm 1.
Idea:    With all other columns as they are, the squared output error is a parabola in one column,
         the same for every row but for its place.  The nearest representable value to its lowest
         point is the best one, so that no pass raises the error of a row.

Equations -> code
    gradient   R = H (Q - W), half the gradient of tr((Q - W)^T H (Q - W)) to Q, transposed as Q
    minimum    beta_j = q_j - R_j / H_jj
    update     q_j <- nearest(beta_j)
Shapes:  I in features, R rows of the weight (both matrices are transposed), J columns of a tile.
Cost:    time 2 O(R I^2) a pass, memory one more copy of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockwright.numerics.column_rounding import ColumnRounder


def descend(
    Q_IR: Tensor, W_IR: Tensor, H_II: Tensor, rounder: ColumnRounder, tiles: Sequence[slice]
) -> None:
    """One pass over all columns, in place on Q; all in the order of ``H_II``.

    H needs a positive diagonal (dead inputs: 1).
    """
    R_IR = H_II @ (Q_IR - W_IR)
    for tile in tiles:
        H_JJ, R_JR, Q_JR = H_II[tile, tile], R_IR[tile], Q_IR[tile]
        D_JR = Q_JR.clone().neg_()
        gradients, columns = R_JR.unbind(0), Q_JR.unbind(0)
        for j, h_jj in enumerate(H_JJ.diagonal().tolist()):
            q = columns[j]
            step = rounder(tile.start + j, torch.sub(q, gradients[j], alpha=1 / h_jj)) - q
            R_JR.addr_(H_JJ[j], step)
            q.add_(step)
        D_JR += Q_JR
        for rest in (slice(0, tile.start), slice(tile.stop, None)):
            R_IR[rest].addmm_(H_II[rest, tile], D_JR)
