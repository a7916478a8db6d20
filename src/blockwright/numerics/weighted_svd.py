"""The best product of two thin matrices in the metric of the inputs, for every rank at once.

    minimise  tr((W - W_hat) H (W - W_hat)^T)   over W_hat of rank R

Idea:    With H = C C^T it is the truncated SVD of W C: W_hat = U_R U_R^T W, where U are the left
         singular vectors, the eigenvectors of the moment W H W^T of the outputs.  The error is the
         sum of the eigenvalues left out: one decomposition gives the error of every rank.
         (Yuan et al., "SVD-LLM", 2024; Kaushal et al., "LORD", 2023.)

Equations -> code
    W H W^T = U diag(energy) U^T     weighted_svd     on the smaller side: W = Q T when O > I
    left = U_R, right = U_R^T W      factors          a projection: exact at full rank, whatever H
    left_k s_k, right_k / s_k        balanced_factors s_k^2 = |right_k| / |left_k|
Shapes:  O out features, I in features, K = min(O, I), R rank.
Cost:    time O(K^3 + O I K), memory K^2 + K (O + I) in float64 up to ``EXACT`` on the smaller side,
         in float32 above.
Raises:  NumericalError when W or H is not finite, or the eigenvalues are not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite

EXACT = 4096
"""Largest smaller side that is decomposed in float64."""
CHUNK_COLUMNS = 256
"""Columns of the Gram converted at a time."""


@dataclass(frozen=True)
class WeightedSvd:
    """Directions of a weight's outputs, by falling energy."""

    basis_OK: Tensor  # noqa: N815 - shape suffix
    """fp32, orthonormal columns: U"""
    image_KI: Tensor  # noqa: N815 - shape suffix
    """fp32: U^T W"""
    energy_K: Tensor  # noqa: N815 - shape suffix
    """float64, falling, not negative: eigenvalues of W H W^T"""

    def error(self, rank: int) -> float:
        """tr(D H D^T) of the best weight of this rank."""
        return float(self.energy_K[rank:].sum())

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """left [O, R] and right [R, I], fp32."""
        return self.basis_OK[:, :rank], self.image_KI[:rank]


def weighted_svd(W_OI: Tensor, H_II: Tensor) -> WeightedSvd:
    """Decompose a weight; ``H_II`` need not have full rank."""
    if not (all_finite(W_OI) and all_finite(H_II)):
        raise NumericalError("the weight or the input Gram holds NaN or infinity")
    W = W_OI.to(torch.float64 if min(W_OI.shape) <= EXACT else torch.float32)
    tall = W.shape[0] > W.shape[1]
    Q, T = torch.linalg.qr(W) if tall else (None, W)
    moment = times_gram(T, H_II) @ T.T
    try:
        energy, basis = torch.linalg.eigh((moment + moment.T) / 2)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericalError(f"no eigenvalues of the outputs' moment: {error}") from None
    basis = basis.flip(1)
    basis = basis if Q is None else Q @ basis
    return WeightedSvd(
        basis_OK=basis.float(),
        image_KI=(basis.T @ W).float(),
        energy_K=energy.flip(0).double().clamp(min=0),
    )


def times_gram(T_KI: Tensor, H_II: Tensor) -> Tensor:
    """T H [K, I] in the dtype of T, without a whole copy of H in it."""
    chunks = H_II.split(CHUNK_COLUMNS, dim=1)
    return torch.cat([T_KI @ H_IJ.to(T_KI.dtype) for H_IJ in chunks], dim=1)


def balanced_factors(left_OR: Tensor, right_RI: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with |left_k| = |right_k| for every k; zeros stay as they are."""
    scale = (right_RI.norm(dim=1) / left_OR.norm(dim=0)).sqrt()
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
    return left_OR * scale, right_RI / scale[:, None]
