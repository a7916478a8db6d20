"""Local linear attention: at each query, the value of an affine fit to its keys and values.

Paper:   Zuo, Yang et al., "Local Linear Attention: An Optimal Interpolation of Linear and Softmax
         Attention for Test-Time Regression", 2025.
Idea:    Softmax attention is a weighted mean of values, a constant fitted around the query.  An
         affine function fitted with the same weights follows a slope: softmax is its limit for an
         infinite ridge, linear regression the one for flat weights.

Equations -> code
    w_ij = exp(s q_i k_j - max),  z_ij = k_j - q_i
    omega = sum w,  mu = sum w z,  Sigma = sum w z z^T + ridge I              _Tile
    rho = Sigma^-1 mu                                                        solve_tile
    o_i = sum_j w_ij (1 - z_ij rho_i) v_j / (omega_i - mu_i rho_i)            local_linear_attention
    Sigma p = ((W * T) K - rowsum(W * T) q) + ridge p,  T = P K^T - rowdot(Q, P)   _Tile.times
Shapes:  q [B, H, N, D], k [B, K, N, D], v [B, K, N, V], K divides H; R rows of a tile.
Cost:    (1 + iterations) of dense attention, for quality and not for speed; memory R N per head,
         Sigma is never stored.
Differs: 1. Conjugate gradients run for a tile of queries at once, all in fp32 (bf16 diverges).
         2. Gradients are implicit: one more solve in the backward pass, nothing is unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.attention.mixer import grouped, ungrouped

TILE = 64
"""Queries that are solved together."""
FLOOR = 1e-12
"""Least denominator, as a share of omega."""


def local_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    ridge: float = 10.0,
    causal: bool = True,
    iterations: int = 32,
    tolerance: float = 1e-6,
) -> Tensor:
    """o [B, H, N, V] in the dtype of q; the last query is at the last key's position.

    ``ridge``: beside weights of which the largest is 1; ``iterations``: most of the solver, which
    stops where the residual is ``tolerance`` of mu.
    """
    heads, (queries, keys) = k.shape[1], (q.shape[2], k.shape[2])
    place = torch.arange(keys, device=q.device)
    outputs = []
    for start in range(0, queries, TILE):
        rows = place[keys - queries + start : keys - queries + min(start + TILE, queries)]
        seen = place <= rows[:, None] if causal else None
        tile = _Tile.of(
            grouped(q[:, :, start : start + TILE].float(), heads), k, scale, seen, ridge
        )
        outputs.append(_attend(tile, v.float(), tile.solve(iterations, tolerance)))
    return ungrouped(torch.cat(outputs, dim=3)).to(q.dtype)


@dataclass(frozen=True)
class _Tile:
    """The weights of some queries, [B, K, G, R, ...]."""

    q: Tensor
    k: Tensor
    """[B, K, 1, N, D]"""
    w: Tensor
    """[B, K, G, R, N]"""
    omega: Tensor
    """[B, K, G, R, 1]"""
    mu: Tensor
    """[B, K, G, R, D]"""
    ridge: float

    @classmethod
    def of(cls, q: Tensor, k: Tensor, scale: float, seen: Tensor | None, ridge: float) -> _Tile:
        k = k.float()[:, :, None]
        logits = scale * (q @ k.mT)
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        w = torch.exp(logits - logits.amax(-1, keepdim=True))
        omega = w.sum(-1, keepdim=True)
        return cls(q, k, w, omega, w @ k - omega * q, ridge)

    def times(self, p: Tensor) -> Tensor:
        """Sigma p [B, K, G, R, D]."""
        weighted = self.w * (p @ self.k.mT - (self.q * p).sum(-1, keepdim=True))
        return weighted @ self.k - weighted.sum(-1, keepdim=True) * self.q + self.ridge * p

    def solve(self, iterations: int, tolerance: float) -> Tensor:
        """rho [B, K, G, R, D], with gradients to all that Sigma and mu are made of."""

        def solved(right: Tensor) -> Tensor:
            return conjugate_gradients(self.times, right, iterations, tolerance)

        with torch.no_grad():
            rho = solved(self.mu)
        if not torch.is_grad_enabled() or not self.mu.requires_grad:
            return rho
        correction: Tensor = _Implicit.apply(self.mu - self.times(rho), solved)  # type: ignore[no-untyped-call]
        return rho + correction


class _Implicit(torch.autograd.Function):
    """Zero, whose gradient is Sigma^-1 times what comes: rho's gradient through its residual."""

    @staticmethod
    def forward(ctx: object, residual: Tensor, solved: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solved = solved  # type: ignore[attr-defined]
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        with torch.no_grad():
            return ctx.solved(gradients[0]), None  # type: ignore[attr-defined]


def conjugate_gradients(
    times: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """x with times(x) = right, each row by itself; rows that are done stay as they are."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, energy = residual.clone(), residual.square().sum(-1, keepdim=True)
    enough = energy * tolerance**2
    for _ in range(iterations):
        going = energy > enough
        if not going.any():
            break
        product = times(direction)
        curvature = (direction * product).sum(-1, keepdim=True)
        step = torch.where(going, energy / curvature.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
        x = x + step * direction
        residual = residual - step * product
        before, energy = energy, torch.where(going, residual.square().sum(-1, keepdim=True), energy)
        turn = torch.where(going, energy / before, 0.0)
        direction = torch.where(going, residual + turn * direction, direction)
    return x


def _attend(tile: _Tile, v: Tensor, rho: Tensor) -> Tensor:
    """o [B, K, G, R, V]."""
    along = rho @ tile.k.mT - (tile.q * rho).sum(-1, keepdim=True)
    weighted = (tile.w * (1 - along)) @ v[:, :, None]
    total = tile.omega - (tile.mu * rho).sum(-1, keepdim=True)
    return weighted / torch.maximum(total, FLOOR * tile.omega)
