"""The error of a linear's output, from the Gram of its inputs.

D = W_hat - W    [O, I]   change of the weight
H = E[x x^T]     [I, I]   Gram of the inputs
error = tr(D H D^T) = E |D x|^2   squared output error, summed over outputs, mean over tokens
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ROWS = 512
"""Rows multiplied at a time: bounds the working memory to this many rows of D."""


def row_errors(D_OI: Tensor, H_II: Tensor) -> Tensor:
    """diag(D H D^T): squared error of every output, fp32 [O].

    Never negative: H is positive semidefinite, so what falls below zero is rounding and set to 0.
    """
    parts = [
        torch.einsum("oi,oi->o", D_RI @ H_II, D_RI).clamp_(min=0)
        for D_RI in torch.split(D_OI, CHUNK_ROWS)
    ]
    return torch.cat(parts)


def quadratic_error(D_OI: Tensor, H_II: Tensor) -> float:
    """tr(D H D^T), the squared output error summed over outputs, mean over tokens."""
    return float(row_errors(D_OI, H_II).sum(dtype=torch.float64))


def relative_error(D_OI: Tensor, W_OI: Tensor, H_II: Tensor) -> float:
    """tr(D H D^T) / tr(W H W^T): 0 is exact, 1 as bad as all zeros; 0 where both vanish."""
    error = quadratic_error(D_OI, H_II)
    return error / quadratic_error(W_OI, H_II) if error else 0.0
