"""Which units of one network do what which units of another do.

Paper:   Saadati et al., "DIMAT: Decentralized Iterative Merging-And-Training for Deep Learning
         Models", CVPR 2024; matching by activations as in Ainsworth, Hayase, Srinivasa, "Git
         Re-Basin", 2022.
Idea:    Hidden units have no order: two networks that compute the same may have them in another
         one.  Units whose activations on the same text correlate most are taken for the same.

Equations -> code
    Cr = cov(a, b) / (std a std b)          unit_correlations
    argmax over orders of sum_c Cr[c, p_c]  matched_units      (Hungarian)
Shapes:  T tokens, C units of K columns each, side by side.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def unit_correlations(a_TI: Tensor, b_TI: Tensor, columns: int = 1) -> Tensor:
    """Cr [C, C], fp32: mean over columns; 0 where a column never changes."""
    a_KTC, b_KTC = (_standardized(x_TI, columns) for x_TI in (a_TI, b_TI))
    return (a_KTC.mT @ b_KTC).mean(0)


def matched_units(Cr_CC: Tensor) -> list[int]:
    """For every unit of a the unit of b that is taken for it, each once."""
    _, order = linear_sum_assignment(Cr_CC.double().numpy(), maximize=True)
    return [int(unit) for unit in order]


def _standardized(x_TI: Tensor, columns: int) -> Tensor:
    """[K, T, C], every column of mean 0 and length 1."""
    x_KTC = x_TI.float().unflatten(1, (-1, columns)).movedim(2, 0)
    x_KTC = x_KTC - x_KTC.mean(1, keepdim=True)
    length_K1C = x_KTC.norm(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(length_K1C > 0, x_KTC / length_K1C.clamp(min=tiny), 0.0)
