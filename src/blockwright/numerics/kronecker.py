"""The nearest sum of Kronecker products, plainly and in the metric of the inputs.

    minimise  tr((W - W_hat) H (W - W_hat)^T),   W_hat = sum_r A_r (x) B_r

Idea:    Rearranged so that every block of W becomes a row, a Kronecker product is a product of a
         column and a row: the nearest sum is a truncated SVD (Van Loan and Pitsianis,
         "Approximation with Kronecker Products", 1993).  With H = H1 (x) H2 it still is, of the
         weight scaled by roots of both.  For any other H that is where the search begins; then A
         and B are solved by turns, each a least-squares problem, by conjugate gradients.

Equations -> code
    H1, H2 = partial traces of H              input_factors
    svd(blocks(W (L1 (x) L2))), H = L L^T     scaled_svd      then A L1^-1, B L2^-1
    A, then B, least squares in H             refine          preconditioned by H1 (x) H2
Shapes:  O = rows block_rows, I = columns block_columns, P = rows columns, Q = block_rows
         block_columns, R terms; A [P, R], B [R, Q].
Cost:    time O(min(P, Q)^3 + O I^2) once, and for each of 2 rounds steps O(R block_rows I^2 +
         rows (columns R)^2): H is multiplied by the factors, not by the weight they stand for;
         memory 5 of W.
Raises:  NumericalError when W or H is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.weighted_svd import balanced_factors, weighted_svd
from blockwright.types import KroneckerSplit

STEPS = 4
"""Conjugate-gradient steps of one half-round."""
RIDGE = 1e-6
"""Of the mean diagonal, in preconditioners: they need no more."""
CONVERGED = 1e-10
"""A half-round ends when its squared residual has fallen to this share of the first."""


@dataclass(frozen=True)
class Factors:
    """A [P, R] and B [R, Q], fp32: blocks(W_hat) = A B."""

    A_PR: Tensor
    B_RQ: Tensor


def input_factors(H_II: Tensor, split: KroneckerSplit) -> tuple[Tensor, Tensor]:
    """H1 [columns, columns] and H2 [block_columns, block_columns]: H is near H1 (x) H2."""
    i1, i2 = split.columns, split.block_columns
    H = H_II.double().reshape(i1, i2, i1, i2)
    H1 = torch.einsum("ijkj->ik", H) / i2
    H2 = torch.einsum("ijil->jl", H) / i1
    return H1, H2 / (H2.diagonal().mean() if H2.diagonal().mean() > 0 else 1)


def scaled_svd(W_OI: Tensor, H_II: Tensor, split: KroneckerSplit) -> Factors:
    """The nearest sum in the metric H1 (x) H2; with H = 1 the nearest of all."""
    H1, H2 = input_factors(H_II, split)
    L1, L2 = (_root(H_part) for H_part in (H1, H2))
    shape = (-1, split.columns, split.block_columns)
    scaled = torch.einsum("oij,ik,jl->okl", W_OI.double().reshape(shape), L1, L2)
    blocks_PQ = split.to_blocks(scaled.reshape(W_OI.shape))
    plain_QQ = torch.eye(blocks_PQ.shape[1], dtype=torch.float64, device=W_OI.device)
    found = weighted_svd(blocks_PQ, plain_QQ)
    A_PR, B_RQ = (factor.double() for factor in found.factors(split.terms))
    A = _unscaled(A_PR.T.reshape(-1, split.columns), L1).reshape(split.terms, -1).T
    B = _unscaled(B_RQ.reshape(-1, split.block_columns), L2).reshape(split.terms, -1)
    A_PR, B_RQ = balanced_factors(A, B)
    return Factors(A_PR.float().contiguous(), B_RQ.float().contiguous())


@dataclass(frozen=True)
class Aim:
    """What A and B are solved for: the weight in the metric of its inputs."""

    split: KroneckerSplit
    H_II: Tensor
    fit_OI: Tensor  # noqa: N815 - shape suffix
    """W H"""
    H1: Tensor
    H2: Tensor
    """H is near H1 (x) H2."""

    @classmethod
    def of(cls, W_OI: Tensor, H_II: Tensor, split: KroneckerSplit) -> Aim:
        return cls(split, H_II, W_OI @ H_II, *input_factors(H_II, split))


def refine(
    W_OI: Tensor, H_II: Tensor, split: KroneckerSplit, start: Factors, rounds: int
) -> Factors:
    """A and B solved by turns; the error never rises."""
    aim, at = Aim.of(W_OI, H_II, split), start
    for _ in range(rounds):
        at = Factors(at.A_PR, solve_right(aim, at))
        at = Factors(solve_left(aim, at), at.B_RQ)
    return at


def solve_left(aim: Aim, at: Factors, steps: int = STEPS) -> Tensor:
    """A better A [P, R] for this B: (A as [rows, columns R]) M = blocks(W H) B^T, with
    M[kr, ls] = sum_b B_rb H_kl B_sb^T.
    """
    split, B_RQ = aim.split, at.B_RQ
    B = B_RQ.double().reshape(split.terms, split.block_rows, split.block_columns)
    moment_RR = torch.einsum("rbj,jl,sbl->rs", B, aim.H2, B)
    inverse_RR, inverse_1 = _inverse(moment_RR), _inverse(aim.H1)
    M = _left_system(aim, B_RQ)

    def precondition(X_PR: Tensor) -> Tensor:
        X = X_PR.reshape(split.rows, split.columns, split.terms)
        return torch.einsum("air,ik,rs->aks", X, inverse_1, inverse_RR).reshape(X_PR.shape)

    def image(X_PR: Tensor) -> Tensor:
        return (X_PR.reshape(split.rows, -1) @ M).reshape(X_PR.shape)

    missing = split.to_blocks(aim.fit_OI) @ B_RQ.T - image(at.A_PR)
    return at.A_PR + conjugate_gradients(image, missing, precondition, steps)


def _left_system(aim: Aim, B_RQ: Tensor) -> Tensor:
    """M [columns R, columns R]"""
    split, k, r = aim.split, aim.split.columns, aim.split.terms
    rows_J = B_RQ.reshape(-1, split.block_columns)
    found = []
    for H_JI in aim.H_II.split(split.block_columns):
        seen = (rows_J @ H_JI).reshape(r, split.block_rows, k, split.block_columns)
        found.append(seen.transpose(1, 2).reshape(r * k, -1) @ B_RQ.T)  # [s k, r]
    by_column = torch.stack([each.reshape(r, k * r) for each in found])
    return by_column.reshape(k * r, k * r)


def solve_right(aim: Aim, at: Factors, steps: int = STEPS) -> Tensor:
    """A better B [R, Q] for this A: sum_kl N_kl B H_lk = A^T blocks(W H), N = A^T A with A as
    [rows, columns R].
    """
    split, A_PR = aim.split, at.A_PR
    A = A_PR.double().reshape(split.rows, split.columns, split.terms)
    moment_RR = torch.einsum("air,ik,aks->rs", A, aim.H1, A)
    inverse_RR, inverse_2 = _inverse(moment_RR), _inverse(aim.H2)
    wide = A_PR.reshape(split.rows, -1)
    N = (wide.T @ wide).reshape(split.columns, split.terms * split.columns, split.terms)
    H_IKJ = aim.H_II.reshape(len(aim.H_II), split.columns, split.block_columns)

    def precondition(X_RQ: Tensor) -> Tensor:
        X = X_RQ.reshape(split.terms, split.block_rows, split.block_columns)
        return torch.einsum("rbj,jl,rs->sbl", X, inverse_2, inverse_RR).reshape(X_RQ.shape)

    def image(X_RQ: Tensor) -> Tensor:
        shape = (split.terms, split.columns, split.block_rows, split.block_columns)
        total = torch.zeros_like(X_RQ)
        for k in range(split.columns):
            mixed = (N[k] @ X_RQ).reshape(shape).transpose(1, 2)  # [r, b, l, j]
            total += (mixed.reshape(-1, len(aim.H_II)) @ H_IKJ[:, k]).reshape(X_RQ.shape)
        return total

    missing = A_PR.T @ split.to_blocks(aim.fit_OI) - image(at.B_RQ)
    return at.B_RQ + conjugate_gradients(image, missing, precondition, steps)


def conjugate_gradients(
    image: Callable[[Tensor], Tensor],
    residual: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> Tensor:
    """X with image(X) = residual, from 0: the quadratic falls in every step."""
    X = torch.zeros_like(residual)
    preconditioned = precondition(residual)
    direction = preconditioned
    left = (residual * preconditioned).sum()
    enough = CONVERGED * left
    for _ in range(steps):
        if not bool(left > enough):
            break
        moved = image(direction)
        step = left / (direction * moved).sum().clamp(min=1e-30)
        X = X + step * direction
        residual = residual - step * moved
        preconditioned = precondition(residual)
        now = (residual * preconditioned).sum()
        direction = preconditioned + (now / left) * direction
        left = now
    return X


def _root(H: Tensor) -> Tensor:
    """L with L L^T = H, damped so little that it exists."""
    L: Tensor = torch.linalg.cholesky(_ridged(H))
    return L


def _unscaled(X_NI: Tensor, L_II: Tensor) -> Tensor:
    """X L^-1"""
    unscaled: Tensor = torch.linalg.solve_triangular(L_II, X_NI, upper=False, left=False)
    return unscaled


def _inverse(H: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(_ridged(H))).float()


def _ridged(H: Tensor) -> Tensor:
    """H plus a little on its diagonal."""
    mean = H.diagonal().mean()
    ridge = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return H + ridge * (RIDGE * mean if mean > 0 else 1)
