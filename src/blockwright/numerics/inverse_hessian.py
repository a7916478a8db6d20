"""The upper factor of the inverse Hessian, for methods that compensate column by column.

A linear's squared output error has the Hessian H = E[x x^T] for every row.  Methods that fix one
column after another need, for each, how the columns still free should move: the rows of the upper
Cholesky factor U of the inverse, U^T U = Hd^-1, with Hd = H + damping * mean(diag H) * I.

Turned end for end (J reverses the order), one Cholesky and one triangular inverse give U at half
the work of inverting H and factoring again:

    J Hd J = L L^T   =>   Hd^-1 = (J L^-1 J)^T (J L^-1 J)   =>   U = J L^-1 J

Memory: at most three matrices of the Gram's size are alive, the caller's among them (in float64,
the last resort, five).  Time: 2/3 I^3 floating-point operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite

RETRIES = 4
"""How often the damping is multiplied by ten before float64 is tried."""
TRIANGLE = 128
"""Triangles up to this size are inverted against the identity."""


def upper_factor(H_II: Tensor, damping: float, *, order: Tensor | None = None) -> Tensor:
    """U [I, I] upper triangular with U^T U = inv(Hd), Hd = H + damping * mean(diag H) * I.

    ``order`` (int64 [I]) factors H with its inputs in that order.  Inputs that never fired (a zero
    on the diagonal) get a 1 there and are left out of the mean: they change nothing for the others.
    When the factorization fails, damping is multiplied by ten, at most four times, then float64 is
    tried.

    Raises ``NumericalError`` when H holds NaN or infinity, has a negative diagonal, or is not
    positive definite even so.
    """
    return factor_damped(H_II, damping, order=order)[0]


def factor_damped(
    H_II: Tensor, damping: float, *, order: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``upper_factor``, and what it added to the diagonal of H, [I] in H's own order."""
    h_I = H_II.diagonal()
    if not all_finite(H_II):
        raise NumericalError("the input Gram holds NaN or infinity")
    if (h_I < 0).any():
        raise NumericalError("the input Gram has a negative diagonal: it is no Gram")
    attempts = [(damping * 10**attempt, torch.float32) for attempt in range(RETRIES + 1)]
    for tried, dtype in (*attempts, (damping * 10**RETRIES, torch.float64)):
        U_II = _factor(H_II, tried, order, dtype)
        if U_II is not None:
            return U_II, _raised(h_I, tried) - h_I
    raise NumericalError(
        f"the input Gram [{len(h_I)}, {len(h_I)}] is not positive definite, not even with damping "
        f"{damping * 10**RETRIES:g} of its mean diagonal, in float64"
    )


def damped(H_II: Tensor, damping: float) -> Tensor:
    """Hd = H + damping * mean(diag H) * I as a new matrix; inputs that never fired get a 1."""
    return _damped(H_II.float().clone(), damping)


def invert_lower(L_II: Tensor) -> None:
    """Replace a lower triangular matrix by its inverse, in place, by halves.

    [ A  0 ]^-1    [    A^-1       0   ]
    [ C  D ]     = [ -D^-1 C A^-1  D^-1 ]
    """
    size = len(L_II)
    if size <= TRIANGLE:
        identity = torch.eye(size, dtype=L_II.dtype, device=L_II.device)
        L_II.copy_(torch.linalg.solve_triangular(L_II, identity, upper=False))
        return
    half = size // 2
    A, C, D = L_II[:half, :half], L_II[half:, :half], L_II[half:, half:]
    C.copy_(torch.linalg.solve_triangular(D, C, upper=False).neg_())
    C.copy_(torch.linalg.solve_triangular(A, C, upper=False, left=False))
    invert_lower(A)
    invert_lower(D)


def _factor(
    H_II: Tensor, damping: float, order: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """U in fp32, or None where Hd is not positive definite to working precision."""
    L_II = _damped_reversed(H_II, damping, order, dtype)
    info = torch.zeros((), dtype=torch.int32, device=H_II.device)
    # LAPACK works in place on columns: L^T by columns is L by rows
    torch.linalg.cholesky_ex(L_II.mT, upper=True, out=(L_II.mT, info))
    if info.item() != 0:
        return None
    invert_lower(L_II)
    return L_II.to(torch.float32).flip(0, 1) if all_finite(L_II) else None


def _damped_reversed(
    H_II: Tensor, damping: float, order: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """J Hd J as a new matrix."""
    if order is None:
        order = torch.arange(len(H_II), device=H_II.device)
    turned = order.flip(0)
    return _damped(H_II[turned[:, None], turned].to(dtype), damping)


def _damped(Hd_II: Tensor, damping: float) -> Tensor:
    """In place."""
    Hd_II.diagonal().copy_(_raised(Hd_II.diagonal(), damping))
    return Hd_II


def _raised(h_I: Tensor, damping: float) -> Tensor:
    """The diagonal of Hd."""
    dead_I = h_I == 0
    alive = max(int((~dead_I).sum()), 1)
    return torch.where(dead_I, 1.0, h_I + damping * h_I.sum() / alive)
