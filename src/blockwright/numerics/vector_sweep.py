"""The column sweep and coordinate descent, for codes that stand for several columns each.

Paper:   the vector form of GPTQ's Algorithm 1 (van Baalen et al., "GPTVQ: The Blessing of
         Dimensionality for LLM Quantization", 2024) and of QuantEase's coordinate descent.
Idea:    With d columns fixed at once, an error e of theirs costs |e U_bb^-1|^2 and moves the free
         columns by -e U_bb^-1 U_b,free.  In descent it costs e H_bb e^T.  Both are distances in a
         metric, so the best entry is the nearest one there.

Equations -> code
    sweep     e = (w - q) U_bb^-1;  W_free -= e U_b,free
    descent   beta = q - R_b H_bb^-1,  R = (Q - W) H;  q <- argmin_k |(beta - E_k) L_bb|
Shapes:  O out features, I in features, D columns of a code, K entries.
Cost:    time O(O I^2 + O I K), memory one tile and O x K beside W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TILE = 128
"""Columns between two updates of everything to their right."""

VectorRounder = Callable[[int, Tensor, Tensor], Tensor]
"""(which vector, weights [O, D], M [D, D]) -> values [O, D] of the entries where |(w - q) M| is
least, row by row.
"""


def sweep_vectors(W_OI: Tensor, U_II: Tensor, dim: int, rounder: VectorRounder) -> None:
    """Replace W by Q, in place, ``dim`` columns at a time; in the order of ``U_II``."""
    identity = torch.eye(dim, device=U_II.device)
    for tile in _tiles(W_OI.shape[1], dim):
        E_OJ = torch.empty_like(W_OI[:, tile])
        for start in range(tile.start, tile.stop, dim):
            here, after = slice(start, start + dim), slice(start + dim, tile.stop)
            M_DD = torch.linalg.solve_triangular(U_II[here, here], identity, upper=True)
            w_OD = W_OI[:, here].contiguous()
            q_OD = rounder(start // dim, w_OD, M_DD)
            e_OD = (w_OD - q_OD) @ M_DD
            W_OI[:, here] = q_OD
            W_OI[:, after] -= e_OD @ U_II[here, after]
            E_OJ[:, start - tile.start : start - tile.start + dim] = e_OD
        W_OI[:, tile.stop :] -= E_OJ @ U_II[tile, tile.stop :]


def descend_vectors(
    Q_OI: Tensor, W_OI: Tensor, H_II: Tensor, dim: int, rounder: VectorRounder
) -> None:
    """One pass over all vectors, in place on Q, which never raises a row's error; H is positive
    definite.
    """
    R_OI = (Q_OI - W_OI) @ H_II
    for tile in _tiles(W_OI.shape[1], dim):
        before_OJ = Q_OI[:, tile].clone()
        for start in range(tile.start, tile.stop, dim):
            here = slice(start, start + dim)
            L_DD = torch.linalg.cholesky(H_II[here, here])
            q_OD = Q_OI[:, here].contiguous()
            step_OD = torch.cholesky_solve(R_OI[:, here].T.contiguous(), L_DD).T
            new_OD = rounder(start // dim, q_OD - step_OD, L_DD)
            R_OI[:, tile] += (new_OD - q_OD) @ H_II[here, tile]
            Q_OI[:, here] = new_OD
        moved_OJ = Q_OI[:, tile] - before_OJ
        for rest in (slice(0, tile.start), slice(tile.stop, None)):
            R_OI[:, rest] += moved_OJ @ H_II[tile, rest]


def _tiles(in_features: int, dim: int) -> Iterator[slice]:
    width = TILE - TILE % dim
    return (slice(at, min(at + width, in_features)) for at in range(0, in_features, width))
