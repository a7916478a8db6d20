"""A certificate that gradient steps of coupled blocks contract, and how large they may be.

Paper:   "Small-Gain Nash: Certified Contraction to Nash Equilibria in Differentiable Games", 2025.
Idea:    The gradient field of several blocks may not be monotone as a whole and yet contract once
         distances in each block are weighted.  Curvatures of the blocks and the strength of their
         couplings make a small matrix; where its least eigenvalue is positive, that is a margin,
         and with the field's size it gives a step that shrinks the weighted distance every time.

Equations -> code     w_i > 0, W = diag(w), M = blockdiag(w_i I)
    C_ii = 2 w_i mu_i,  C_ij = -(w_i L_ij + w_j L_ji)
    alpha(w) = 1/2 lambda_min(W^-1/2 C W^-1/2)              margin
    beta(w) = |M^1/2 J M^-1/2|                              size
    h < 2 alpha / beta^2, factor sqrt(1 - 2 h alpha + h^2 beta^2)     certify, Certificate
    r = w_2 / w_1 with margin a, p = (mu_1 - a)(mu_2 - a), q = L_12 L_21:
    r = (2 p - q -/+ 2 sqrt(p (p - q))) / L_21^2            two_block_band
Shapes:  B blocks, N coordinates.
Differs from the paper: weights of more than two blocks are found by Nelder-Mead on logarithms;
         bounds are those of one Jacobian, not of a region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """What steps may be taken; ``weights`` make the norm that shrinks."""

    alpha: float
    beta: float
    weights: tuple[float, ...]

    @property
    def certified(self) -> bool:
        """Whether there is a margin."""
        return self.alpha > 0

    @property
    def largest_step(self) -> float:
        """Steps below it contract; 0 without a certificate."""
        return 2 * self.alpha / self.beta**2 if self.certified else 0.0

    def factor(self, step: float) -> float:
        """Bound on what is left of the weighted distance after one step."""
        return math.sqrt(max(0.0, 1 - 2 * step * self.alpha + (step * self.beta) ** 2))


def bounds(J_NN: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """mu [B], least eigenvalues of the blocks' own symmetric parts, and L [B, B], norms of the
    couplings, zero on the diagonal.
    """
    own = [J_NN[b, b] for b in blocks]
    mu_B = torch.stack([torch.linalg.eigvalsh((part + part.T) / 2)[0] for part in own])
    L_BB = torch.stack(
        [torch.stack([torch.linalg.matrix_norm(J_NN[i, j], 2) for j in blocks]) for i in blocks]
    )
    return mu_B, L_BB.fill_diagonal_(0)


def margin(mu_B: Tensor, L_BB: Tensor, w_B: Tensor) -> float:
    """alpha(w)."""
    coupled_BB = w_B[:, None] * L_BB
    C_BB = torch.diag(2 * w_B * mu_B) - (coupled_BB + coupled_BB.T)
    root_B = w_B.rsqrt()
    least: Tensor = torch.linalg.eigvalsh(root_B[:, None] * C_BB * root_B)[0]
    return 0.5 * least.item()


def size(J_NN: Tensor, blocks: Sequence[slice], w_B: Tensor) -> float:
    """beta(w)."""
    root_N = torch.ones(len(J_NN), dtype=J_NN.dtype)
    for block, weight in zip(blocks, w_B.tolist(), strict=True):
        root_N[block] = math.sqrt(weight)
    norm: Tensor = torch.linalg.matrix_norm(root_N[:, None] * J_NN / root_N, 2)
    return norm.item()


def certify(J_NN: Tensor, blocks: Sequence[slice]) -> Certificate:
    """The weights of the largest margin, and what steps they allow."""
    J_NN = J_NN.double()
    mu_B, L_BB = bounds(J_NN, blocks)

    def loss(logarithms: Any) -> float:
        w_B = torch.tensor([0.0, *logarithms], dtype=torch.float64).exp()
        return -margin(mu_B, L_BB, w_B)

    start = [0.0] * (len(blocks) - 1)
    if len(blocks) == 2:
        grid = torch.linspace(-2, 4, 121, dtype=torch.float64) * math.log(10)
        start = [min(grid.tolist(), key=lambda logarithm: loss([logarithm]))]
    found = minimize(loss, start, method="Nelder-Mead").x.tolist() if start else []
    w_B = torch.tensor([0.0, *found], dtype=torch.float64).exp()
    return Certificate(margin(mu_B, L_BB, w_B), size(J_NN, blocks, w_B), tuple(w_B.tolist()))


def two_block_band(mu_B: Tensor, L_BB: Tensor, alpha: float) -> tuple[float, float] | None:
    """The ratios w_2 / w_1 with at least this margin; None where there is none."""
    p = (mu_B[0].item() - alpha) * (mu_B[1].item() - alpha)
    q = L_BB[0, 1].item() * L_BB[1, 0].item()
    if p <= q or min(mu_B.tolist()) <= alpha or L_BB[1, 0] == 0:
        return None
    spread = 2 * math.sqrt(p * (p - q))
    squared = L_BB[1, 0].item() ** 2
    return (2 * p - q - spread) / squared, (2 * p - q + spread) / squared
