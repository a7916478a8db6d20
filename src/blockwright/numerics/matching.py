"""The weight that gives the original's outputs best on inputs that are not the original's.

Paper:   Li, Yin, Lee, Xu, Panda, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
         Calibration", ICML 2025, whose objective this is; there inside the column sweep.
Idea:    Behind a compressed prefix a linear sees x in place of the original's x0.  Its outputs
         shall still be W x0, so a part of the prefix's error is made up for before anything is
         rounded.

    min_V E |V x - W x0|^2   =>   V = W C H^-1,   H = E[x x^T],  C = E[x0 x^T]
    |V' x - W x0|^2 = |(V' - V) x|^2 + a constant: what rounds V against H solves the whole.

Shapes:  O out features, I in features.
Cost:    time O(I^3 + O I^2), memory two more Grams.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.inverse_hessian import damped


def matched_weight(W_OI: Tensor, H_II: Tensor, C_II: Tensor, damping: float = 0.01) -> Tensor:
    """V [O, I]; damping pulls it to W.

    Raises ``NumericalError`` when H is not positive definite with this damping.
    """
    L_II, info = torch.linalg.cholesky_ex(damped(H_II, damping))
    if info.item() != 0:
        raise NumericalError("the Gram of the real inputs cannot be factored")
    change_IO = torch.cholesky_solve((W_OI @ (C_II - H_II)).T, L_II)
    return (W_OI + change_IO.T).contiguous()
