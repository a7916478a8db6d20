"""SparseGPT written plainly, in float64: one column after another, the inverse recomputed."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.numerics.masks import keep_n_of_m


def pruning_loop(W_OI: Tensor, H_II: Tensor, n: int, m: int, damping: float) -> Tensor:
    """W_hat [O, I] of an N:M mask, float64: masks by w^2 / inv(H)_jj with the inputs before the
    group eliminated one by one.
    """
    W, H = W_OI.double().clone(), H_II.double()
    features = W.shape[1]
    Hd = H + damping * H.diagonal().mean() * torch.eye(features, dtype=torch.float64)
    # inv(Hd[j:, j:])[0, 0]: what is left of input j once those before it are fixed
    inverses = [torch.linalg.inv(Hd[j:, j:]) for j in range(features)]
    pivots = torch.stack([inverse[0, 0] for inverse in inverses])
    mask = torch.zeros_like(W, dtype=torch.bool)
    for j in range(features):
        if j % m == 0:
            group = slice(j, j + m)
            mask[:, group] = keep_n_of_m(W[:, group].square() / pivots[group], n, m)
        error = W[:, j] - W[:, j] * mask[:, j]
        W[:, j:] -= error[:, None] * inverses[j][0] / inverses[j][0, 0]
    return W * mask
