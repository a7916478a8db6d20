"""Vector codebooks: which of K vectors stands for a weight's next D inputs, and where they are.

Idea:    Neighbouring weights are coded together: with K vectors of D values a weight takes
         log2(K) / D bits, and the vectors can lie where the weights are.  Errors of some inputs
         count more than those of others, so distances are weighted.

Equations -> code
    assign    argmin_k sum_j w_j (z_j - E_kj)^2                         nearest
    start     P(z) ~ least weighted distance to what was drawn          drawn_apart
    k-means   E_kj = sum w z / sum w over the vectors of cell k         refilled
    empty     a cell without vectors moves to a vector of largest error refilled
    refit     least squares of E = B Theta on the outputs, codes fixed  refit_codebook
Shapes:  N vectors, D values of each, K entries of the codebook; O, I, G of the weight.
Cost:    time O(N K D), memory a chunk of N with all K.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_DISTANCES = 1 << 22
"""Distances held at a time: 16 MiB."""


def nearest(z_ND: Tensor, E_KD: Tensor, weight_ND: Tensor | None = None) -> Tensor:
    """Codes int64 [N] of the nearest entries, the first of equal ones; weight: 1 if None."""
    rows = max(1, CHUNK_DISTANCES // len(E_KD))
    found = []
    for start in range(0, len(z_ND), rows):
        here = slice(start, start + rows)
        weight = None if weight_ND is None else weight_ND[here]
        found.append(_distances(z_ND[here], E_KD, weight).argmin(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=z_ND.device)


def kmeans(
    z_ND: Tensor, weight_ND: Tensor, entries: int, *, rounds: int, generator: torch.Generator
) -> Tensor:
    """A codebook [K, D] of small weighted error."""
    E_KD = drawn_apart(z_ND, weight_ND, entries, generator)
    for _ in range(rounds):
        E_KD = refilled(z_ND, weight_ND, E_KD, nearest(z_ND, E_KD, weight_ND))
    return E_KD


def drawn_apart(
    z_ND: Tensor, weight_ND: Tensor, entries: int, generator: torch.Generator
) -> Tensor:
    """Vectors [K, D], each drawn with a chance as its error by those before (k-means++); 0 once
    none has any.
    """
    E_KD = z_ND.new_zeros(entries, z_ND.shape[1])
    error_N = weight_ND.sum(1)
    for k in range(entries):
        if not error_N.any():
            break
        drawn = torch.multinomial(error_N.cpu(), 1, generator=generator).to(z_ND.device)
        E_KD[k] = z_ND[drawn]
        here_N = ((z_ND - E_KD[k]).square() * weight_ND).sum(1)
        error_N = here_N if k == 0 else torch.minimum(error_N, here_N)
    return E_KD


def refilled(z_ND: Tensor, weight_ND: Tensor, E_KD: Tensor, codes_N: Tensor) -> Tensor:
    """The weighted means of all cells; empty ones move to the vectors of largest error.

    A value whose weights are all 0 stays as it is.
    """
    total_KD = cell_sums(weight_ND, codes_N, len(E_KD))
    mean_KD = cell_sums(weight_ND * z_ND, codes_N, len(E_KD)) / total_KD
    moved_KD = torch.where(total_KD > 0, mean_KD, E_KD)
    empty_M = empty_cells(codes_N, len(E_KD))
    if len(empty_M):
        error_N = ((z_ND - moved_KD[codes_N]).square() * weight_ND).sum(1)
        worst_M = error_N.argsort(descending=True, stable=True)[: len(empty_M)]
        worst_M = worst_M[error_N[worst_M] > 0]
        moved_KD[empty_M[: len(worst_M)]] = z_ND[worst_M]
    return moved_KD


def cell_sums(values_ND: Tensor, codes_N: Tensor, entries: int) -> Tensor:
    """Sums of the vectors of every cell, [K, D]; 0 for empty ones."""
    columns = values_ND.double().unbind(1)
    sums = [torch.bincount(codes_N, column, minlength=entries) for column in columns]
    return torch.stack(sums, 1).float()


def empty_cells(codes_N: Tensor, entries: int) -> Tensor:
    """int64 [M], rising: entries that stand for no vector."""
    return (torch.bincount(codes_N.flatten(), minlength=entries) == 0).nonzero()[:, 0]


def refit_codebook(
    start_KD: Tensor,
    basis_KR: Tensor | None,
    codes_OV: Tensor,
    S_OI: Tensor,
    W_OI: Tensor,
    H_II: Tensor,
    *,
    steps: int,
) -> Tensor:
    """E [K, D] of less squared output error of W_hat = E[codes] S, by conjugate gradients.

    Searched in start + basis Theta, Theta [R, D]; without a basis every entry is free.  ``S``: the
    scale of every weight.  Entries of empty cells move with the basis, or stay.
    """
    dim, codes_N = start_KD.shape[1], codes_OV.flatten()

    def spread(E_KD: Tensor) -> Tensor:
        return E_KD[codes_N].view(W_OI.shape) * S_OI

    def gathered(P_OI: Tensor) -> Tensor:
        found_KD = cell_sums((P_OI * S_OI).view(-1, dim), codes_N, len(start_KD))
        return found_KD if basis_KR is None else basis_KR.T @ found_KD

    def placed(Theta_RD: Tensor) -> Tensor:
        return Theta_RD if basis_KR is None else basis_KR @ Theta_RD

    energy_I = H_II.diagonal().expand_as(W_OI)
    weight_KD = cell_sums((S_OI.square() * energy_I).reshape(-1, dim), codes_N, len(start_KD))
    curvature_RD = weight_KD if basis_KR is None else basis_KR.square().T @ weight_KD
    Theta_RD = _conjugate_gradients(
        lambda Theta: gathered(spread(placed(Theta)) @ H_II),
        gathered((W_OI - spread(start_KD)) @ H_II),
        curvature_RD,
        steps,
    )
    return start_KD + placed(Theta_RD)


def _conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], wanted: Tensor, diagonal: Tensor, steps: int
) -> Tensor:
    """x with multiply(x) = wanted from x = 0, divided by the diagonal; 0 where that is 0."""
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    x, r = torch.zeros_like(wanted), wanted
    p = r * inverse
    energy = float((r * p).sum(dtype=torch.float64))
    for _ in range(steps):
        Ap = multiply(p)
        curvature = float((p * Ap).sum(dtype=torch.float64))
        if energy <= 0 or curvature <= 0:
            break
        x, r = x + energy / curvature * p, r - energy / curvature * Ap
        z = r * inverse
        before, energy = energy, float((r * z).sum(dtype=torch.float64))
        p = z + energy / before * p
    return x


def _distances(z_ND: Tensor, E_KD: Tensor, weight_ND: Tensor | None) -> Tensor:
    """[N, K], but for what all entries have in common."""
    if weight_ND is None:
        weight_ND, squares = z_ND.new_ones(len(z_ND), 1), E_KD.square().sum(1, keepdim=True)
        return torch.cat([z_ND, weight_ND], 1) @ torch.cat([-2 * E_KD, squares], 1).T
    weighted = torch.cat([weight_ND * z_ND, weight_ND], 1)  # one product with 2 D inside
    return weighted @ torch.cat([-2 * E_KD, E_KD.square()], 1).T
