"""Perturb, then diagonalize: diagonal modes whose transfer function is that of HiPPO-LegS.

Paper:   Yu, Nigmetov, Morozov, Mahoney, Erichson, "Robustifying State-space Models for Long
         Sequences via Approximate Diagonalization", ICLR 2024.
Idea:    HiPPO-LegS cannot be diagonalized stably.  S4D takes the eigenvalues of its normal part, a
         different matrix, and converges only weakly: some frequencies come through far too loud.
         After a small random perturbation its eigenvectors are well-conditioned, and its transfer
         function is uniformly close.

Equations -> code
    A + E = V L V^-1,  ||E|| = eps ||A||         perturbed_modes
    B' = V^-1 B,  C' = C V
Shapes:  S modes for a state of size S; they are no conjugate pairs.
Cost:    one eigendecomposition per draw.
Differs: 1. E is the best of some complex Gaussian draws; the paper may refine it by gradients.
         2. eps = 1e-3: larger ones made unstable modes at size 48 (docs/decisions.md).
Raises:  NumericalError when no draw is stable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.attention.mixers.hippo import legs
from blockwright.errors import NumericalError


def perturbed_modes(
    size: int, *, eps: float = 1e-3, draws: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """L [S], B' [S] and V [S, S] (complex128) of the draw whose V is conditioned best.

    C' of an output C [S] is C V.  All of L have real parts below 0.
    """
    A, B = legs(size)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least = torch.inf
    for _ in range(draws):
        E = torch.view_as_complex(
            torch.randn(size, size, 2, dtype=torch.float64, generator=generator)
        )
        E *= eps * torch.linalg.matrix_norm(A, 2) / torch.linalg.matrix_norm(E, 2)
        L, V = torch.linalg.eig(A + E)
        condition = float(torch.linalg.cond(V))
        if bool((L.real < 0).all()) and condition < least:
            least, best = condition, (L, torch.linalg.solve(V, B.to(V.dtype)), V)
    if best is None:
        raise NumericalError(
            f"none of {draws} perturbations of {eps:g} of HiPPO-LegS [{size}, {size}] is stable;"
            " take a smaller eps"
        )
    return best
