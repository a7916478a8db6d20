"""The error of a linear's output, from the Gram of its inputs.

D = W_hat - W    [O, I]   change of the weight
H = E[x x^T]     [I, I]   Gram of the inputs
error = tr(D H D^T) = E |D x|^2   squared output error, summed over outputs, mean over tokens
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_COLUMNS = 512
"""Inputs taken together, J: bounds the working memory to this many columns of D."""


def row_errors(D_OI: Tensor, H_II: Tensor) -> Tensor:
    """diag(D H D^T): squared error of every output, fp32 [O].

    H is symmetric, so what is below its diagonal counts twice and what is above is left out.  Never
    negative: H is positive semidefinite, so what falls below zero is rounding and set to 0.
    """
    errors_O = torch.zeros(len(D_OI), device=D_OI.device)
    for start in range(0, D_OI.shape[1], CHUNK_COLUMNS):
        here = slice(start, start + CHUNK_COLUMNS)
        below = slice(start + CHUNK_COLUMNS, None)
        D_OJ = D_OI[:, here]
        P_OJ = torch.addmm(D_OJ @ H_II[here, here], D_OI[:, below], H_II[below, here], alpha=2)
        errors_O += torch.einsum("oj,oj->o", P_OJ, D_OJ)
    return errors_O.clamp_(min=0)


def quadratic_error(D_OI: Tensor, H_II: Tensor) -> float:
    """tr(D H D^T), the squared output error summed over outputs, mean over tokens."""
    return float(row_errors(D_OI, H_II).sum(dtype=torch.float64))


def relative_error(D_OI: Tensor, W_OI: Tensor, H_II: Tensor) -> float:
    """tr(D H D^T) / tr(W H W^T): 0 is exact, 1 as bad as all zeros; 0 where both vanish."""
    error = quadratic_error(D_OI, H_II)
    return error / quadratic_error(W_OI, H_II) if error else 0.0
