"""The matrix behind a layer's channels, fitted again when only some of them stay.

    minimise  tr((W_hat - W) C (W_hat - W)^T)   over W_hat that reads the channels of K alone

Shapes:  O outputs, I channels, K that stay; C = E[a a^T], a = the channels.
Cost:    time O(K^3 + O I K), memory 2 I^2 doubles.
Raises:  NumericalError when C is not positive definite even damped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError


def refit(W_OI: Tensor, C_II: Tensor, kept_K: Tensor, damping: float) -> Tensor:
    """Least squares [O, K] for the outputs of all channels from those that stay.

    With all of them kept this is W (C + damping I)^-1 C, so the damping pulls towards W's own
    columns instead of towards 0: W_K + (W_rest C_rest,K) (C_KK + damping I)^-1.
    """
    W = W_OI.double()
    rest_I = torch.ones(len(C_II), dtype=torch.bool, device=C_II.device)
    rest_I[kept_K] = False
    given_OK = W[:, rest_I] @ C_II[rest_I][:, kept_K]
    factor_KK = damped_factor(C_II[kept_K][:, kept_K], damping)
    return (W[:, kept_K] + torch.cholesky_solve(given_OK.T, factor_KK).T).float().contiguous()


def damped_factor(C_II: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of C + ridge I."""
    damped_II = C_II.clone()
    damped_II.diagonal().add_(ridge)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped_II)
    if failed:
        raise NumericalError(
            "the Gram of its channels is not positive definite; give it more calibration tokens, or"
            " a larger ridge and damping"
        )
    return factor
