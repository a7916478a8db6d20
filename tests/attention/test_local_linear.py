"""Local linear attention: the weighted least-squares fit, its limits, its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.local_linear import conjugate_gradients, local_linear_attention


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data(tokens: int = 90) -> tuple[Tensor, Tensor, Tensor]:
    return normal(1, 4, tokens, 6), normal(1, 2, tokens, 6, seed=1), normal(1, 2, tokens, 5, seed=2)


def fitted(q: Tensor, k: Tensor, v: Tensor, scale: float, ridge: float) -> Tensor:
    """The value at q of the affine fit to keys and values, one query, by the normal equations."""
    logits = scale * (k @ q)
    w = torch.exp(logits - logits.max())
    z = torch.cat([torch.ones(len(k), 1), k - q], dim=1)
    gram = (z * w[:, None]).T @ z
    gram[1:, 1:] += ridge * torch.eye(k.shape[1])
    affine: Tensor = torch.linalg.solve(gram, (z * w[:, None]).T @ v)
    return affine[0]


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_the_fit_at_the_query(causal: bool) -> None:
    q, k, v = data()
    o = local_linear_attention(q, k, v, scale=0.4, ridge=1.0, causal=causal)
    for head, row in ((0, 20), (3, 89), (2, 64)):
        seen = row + 1 if causal else 90
        keys, values = k[0, head // 2, :seen], v[0, head // 2, :seen]
        expected = fitted(q[0, head, row], keys, values, 0.4, 1.0)
        torch.testing.assert_close(o[0, head, row], expected, rtol=1e-3, atol=1e-4)


def test_a_large_ridge_makes_it_softmax_attention() -> None:
    q, k, v = data()
    o = local_linear_attention(q, k, v, scale=0.4, ridge=1e6)
    keys, values = (x.repeat_interleave(2, 1) for x in (k, v))
    softmax = F.scaled_dot_product_attention(q, keys, values, scale=0.4, is_causal=True)
    torch.testing.assert_close(o, softmax, rtol=0, atol=1e-3)


def test_one_query_behind_a_cache_gives_what_the_whole_sequence_gave() -> None:
    q, k, v = data()
    whole = local_linear_attention(q, k, v, scale=0.4)
    last = local_linear_attention(q[:, :, -1:], k, v, scale=0.4)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_exact_solution() -> None:
    leaves = [x.double().float().requires_grad_() for x in data(12)]
    found = torch.autograd.grad(
        local_linear_attention(*leaves, scale=0.4, ridge=1.0).square().sum(), leaves
    )
    q, k, v = leaves
    rows = [
        fitted(q[0, h, t], k[0, h // 2, : t + 1], v[0, h // 2, : t + 1], 0.4, 1.0)
        for h in range(4)
        for t in range(12)
    ]
    expected = torch.autograd.grad(torch.stack(rows).square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_dimensions() -> None:
    A = normal(6, 6)
    A = A @ A.T + torch.eye(6)
    right = normal(3, 6, seed=1)
    x = conjugate_gradients(lambda p: p @ A, right, 6, 0.0)
    torch.testing.assert_close(x @ A, right, rtol=1e-3, atol=1e-3)
