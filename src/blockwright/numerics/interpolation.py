"""Rows that all other rows are mixtures of: the interpolative decomposition.

    A [O, R] = T A_p,   p = R rows of A that are well conditioned,   T_p = identity

Idea:    Pivoted QR of A^T takes the row that lies farthest from those taken before.  What a row of
         rank R is made of is then a mixture of those with coefficients near 1, so that it can be
         stored in few bits.
         (Cheng, Gimbutas, Martinsson, Rokhlin, "On the Compression of Low Rank Matrices", 2005.)

Equations -> code
    A^T P = Q R                      pivot_rows     rows by falling distance from those before
    T = A A_p^+                      mix_rows       least squares; exact where A has rank R
    y = T y_p at the others          places         where each output stands: kept, then mixed
Cost:    time O(O C^2) for A [O, C], memory A in float64.
Raises:  NumericalError when A is not finite or T is not.
"""

from __future__ import annotations

import torch
from scipy.linalg import LinAlgError, qr
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite


def pivot_rows(A_OC: Tensor) -> Tensor:
    """Rows of A, int64, by falling distance from the span of those before: the first R of them
    stand for the others.
    """
    if not all_finite(A_OC):
        raise NumericalError("the rows to choose among are not finite")
    try:
        _, pivots = qr(A_OC.T.double().cpu().numpy(), mode="r", pivoting=True)
    except LinAlgError as error:
        raise NumericalError(f"no pivoted QR: {error}") from None
    return torch.from_numpy(pivots.copy()).long().to(A_OC.device)


def mix_rows(A_OC: Tensor, kept_R: Tensor) -> Tensor:
    """T [O - R, R] of the rows that are not kept, in their order, fp32."""
    A = A_OC.double()
    others = A[~is_kept(len(A), kept_R)]
    mixing: Tensor = torch.linalg.lstsq(A[kept_R].T, others.T).solution.T
    if not all_finite(mixing):
        raise NumericalError("the kept rows depend on each other: nothing can be mixed from them")
    return mixing.float().contiguous()


def places(rows: int, kept_R: Tensor) -> Tensor:
    """place [O], int64: where row o stands among the kept ones, then the others."""
    others = (~is_kept(rows, kept_R)).nonzero()[:, 0]
    return torch.argsort(torch.cat([kept_R, others]))


def is_kept(rows: int, kept_R: Tensor) -> Tensor:
    """bool [O]"""
    mask = torch.zeros(rows, dtype=torch.bool, device=kept_R.device)
    return mask.index_fill_(0, kept_R, True)
