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
from blockwright.numerics.column_sweep import STRIP


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
        gradients, columns, curvatures = R_JR.unbind(0), Q_JR.unbind(0), H_JJ.diagonal().tolist()
        for start in range(0, len(Q_JR), STRIP):
            stop = min(start + STRIP, len(Q_JR))
            for j in range(start, stop):
                q = columns[j]
                step = rounder(tile.start + j, torch.sub(q, gradients[j], alpha=1 / curvatures[j]))
                R_JR[j + 1 : stop].addr_(H_JJ[j, j + 1 : stop], step - q)
                q.copy_(step)
            D_JR[start:stop] += Q_JR[start:stop]
            R_JR[stop:].addmm_(H_JJ[stop:, start:stop], D_JR[start:stop])
        R_IR[tile.stop :].addmm_(H_II[tile.stop :, tile], D_JR)
