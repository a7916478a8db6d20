"""How many singular values of a weight count, by one threshold for all weights.

Paper:   Jaiswal, Wang, Yin, Liu, Chen, Zhao, Grama, Tian, Wang, "From GaLore to WeLore: How
         Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", ICML 2025.
Idea:    Singular values scaled to 0..1 are comparable between weights.  Heavy-tailed ones have few
         large values, flat ones many: one threshold cuts each where its own tail begins.

Equations -> code
    n_k = (sigma_k - min) / (max - min)     normalized
    rank(t) = count(n_k >= t)               rank_above
    1 - sum rank(t) / sum full = target     threshold_for    the target quantile of all n_k
Shapes:  K singular values, falling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalized(sigma_K: Tensor, quantile: float = 1.0) -> Tensor:
    """n [K], 0 to 1; where all are equal, all are 1.

    ``quantile`` below 1 stands for the largest, so that one outlier does not press all others down.
    """
    low, high = sigma_K.min(), torch.quantile(sigma_K, quantile)
    if not high > low:
        return torch.ones_like(sigma_K)
    return ((sigma_K - low) / (high - low)).clamp(max=1)


def rank_above(spectrum_K: Tensor, threshold: float) -> int:
    """How many normalized values reach the threshold."""
    return int((spectrum_K >= threshold).sum())


def threshold_for(
    spectra: Sequence[Tensor], reduction: float, costs: Sequence[float] | None = None
) -> float:
    """The threshold at which a share ``reduction`` of all ranks is left out.

    ``costs``: what a rank of each weight counts; its out + in features make it a share of the
    stored numbers.  Raises ``ValueError`` unless the share is from 0 to 1.
    """
    if not 0 <= reduction <= 1:
        raise ValueError(f"a share of {reduction} ranks cannot be left out; give 0 to 1")
    weights = costs if costs is not None else [1.0] * len(spectra)
    values = torch.cat([spectrum.double() for spectrum in spectra])
    each = torch.cat(
        [
            torch.full_like(s, cost, dtype=torch.float64)
            for s, cost in zip(spectra, weights, strict=True)
        ]
    )
    order = torch.argsort(values, stable=True)
    left_out = each[order].cumsum(0)
    place = int(torch.searchsorted(left_out, reduction * left_out[-1] * (1 - 1e-12)))
    if reduction == 0:
        return float(values.min())
    above = values[order[place + 1 :]]
    return float(above[0]) if len(above) else float("inf")
