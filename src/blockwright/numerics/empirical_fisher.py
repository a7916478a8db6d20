"""The inverse of an empirical Fisher matrix that is never formed.

    F = lambda I + 1/M sum_k g_k g_k^T

Paper:   Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
         Information", NeurIPS 2021.
Idea:    F is a multiple of the identity but for M directions, so that its inverse is one, too:
         products, the diagonal and single entries are exact from an M x M factor.

Equations -> code     L L^T = lambda M I + G G^T,  B = L^-1 G
    F^-1 x = (x - B^T B x) / lambda                         product
    diag F^-1 = (1 - sum_k B_k^2) / lambda                  diagonal
    min 1/2 d F d^T, (w + d)_Q = 0:
    d = t F^-1,  [F^-1]_QQ t_Q = -w_Q                       removed        by conjugate gradients
Shapes:  M gradients of D weights each, R rows of weights that share them.
Cost:    O(M^2 D) once, O(M D) a product; memory M D.
Differs from the paper: one Cholesky in place of its recursion, to which it is equal.
Raises:  NumericalError when a gradient is not finite, or there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite

ITERATIONS = 20


@dataclass(frozen=True)
class EmpiricalFisher:
    """B and lambda."""

    B_MD: Tensor
    ridge: float

    @classmethod
    def of(cls, G_MD: Tensor, ridge: float) -> EmpiricalFisher:
        """From gradients; ``ridge`` is lambda."""
        if not len(G_MD) or not all_finite(G_MD):
            raise NumericalError("the gradients are missing, or not finite")
        G = G_MD.double()
        inner_MM = G @ G.T
        inner_MM.diagonal().add_(ridge * len(G))
        L_MM, info = torch.linalg.cholesky_ex(inner_MM)
        if info.item():
            raise NumericalError("the gradients' products cannot be factored; raise the damping")
        B_MD: Tensor = torch.linalg.solve_triangular(L_MM, G, upper=False)
        return cls(B_MD.to(G_MD.dtype), ridge)

    def product(self, x_RD: Tensor) -> Tensor:
        """x F^-1 [R, D]."""
        return (x_RD - (x_RD @ self.B_MD.T) @ self.B_MD) / self.ridge

    def diagonal(self) -> Tensor:
        """diag F^-1 [D], positive."""
        kept_D = 1 - self.B_MD.square().sum(0)
        return kept_D.clamp_(min=torch.finfo(kept_D.dtype).eps) / self.ridge

    def removed(self, w_RD: Tensor, gone_RD: Tensor) -> Tensor:
        """w with some weights zero and the others moved to where F says it hurts least."""
        right = -w_RD * gone_RD
        t, residual = torch.zeros_like(w_RD), right
        direction, left_R = residual, residual.square().sum(1)
        enough_R = 1e-12 * left_R
        for _ in range(ITERATIONS):
            image = self.product(direction) * gone_RD
            bend_R = (direction * image).sum(1).clamp(min=1e-30)
            step_R = torch.where(left_R > enough_R, left_R / bend_R, 0)
            t = t + step_R[:, None] * direction
            residual = residual - step_R[:, None] * image
            now_R = residual.square().sum(1)
            direction = residual + (now_R / left_R.clamp(min=1e-30))[:, None] * direction
            left_R = torch.where(left_R > enough_R, now_R, left_R)
        return (w_RD + self.product(t)).masked_fill(gone_RD, 0)
