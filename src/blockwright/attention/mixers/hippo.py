"""The HiPPO-LegS matrix: a recurrence that keeps the past as Legendre coefficients.

Paper:   Gu, Dao, Ermon, Rudra, Re, "HiPPO: Recurrent Memory with Optimal Polynomial Projections",
         NeurIPS 2020; its normal part: Gu, Goel, Re, "S4", ICLR 2022.

All in double precision: its eigenvectors are nearly parallel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def legs(size: int) -> tuple[Tensor, Tensor]:
    """A [S, S] and B [S]: A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it."""
    n = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    return -torch.outer(root, root).tril(-1) - torch.diag(n + 1), root


def normal_part(size: int) -> Tensor:
    """A + P P^T with P_n = sqrt(n + 1/2): -1/2 I and a skew-symmetric matrix."""
    A, _ = legs(size)
    P = torch.sqrt(torch.arange(size, dtype=torch.float64) + 0.5)
    return A + torch.outer(P, P)


def transfer(A: Tensor, B: Tensor, C: Tensor, frequencies: Tensor) -> Tensor:
    """G(i omega) = C (i omega - A)^-1 B at real frequencies [F], complex [F]; A may be diagonal."""
    s = 1j * frequencies.to(torch.complex128)
    if A.ndim == 1:
        return (C * B / (s[:, None] - A)).sum(-1)
    identity = torch.eye(len(A), dtype=torch.complex128)
    right = B.to(torch.complex128).expand(len(s), -1)[..., None]
    solved: Tensor = torch.linalg.solve(s[:, None, None] * identity - A, right)
    return solved[..., 0] @ C.to(torch.complex128)
