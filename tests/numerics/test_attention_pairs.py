"""Fewer dimensions of heads: against the optimal product, and against masks."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.numerics.attention_pairs import query_key_scores, value_output

DRAW = torch.Generator().manual_seed(0)


def moment(width: int, tokens: int = 400) -> Tensor:
    X = torch.randn(tokens, width, generator=DRAW) @ torch.randn(width, width, generator=DRAW)
    return X.T @ X / tokens


def test_all_dimensions_give_the_pair_back() -> None:
    Wv, Wo, C = torch.randn(8, 24, generator=DRAW), torch.randn(40, 8, generator=DRAW), moment(24)
    less_v, less_o, _ = value_output(C, Wv, Wo, 8)
    torch.testing.assert_close(less_o @ less_v, (Wo @ Wv).double(), rtol=1e-4, atol=1e-4)


def test_the_error_is_what_was_dropped_and_no_pair_has_less() -> None:
    Wv, Wo, C = torch.randn(8, 24, generator=DRAW), torch.randn(40, 8, generator=DRAW), moment(24)
    root = torch.linalg.cholesky(C.double())
    best = torch.linalg.svdvals((Wo @ Wv).double() @ root)
    for rank in (1, 3, 6):
        less_v, less_o, S = value_output(C, Wv, Wo, rank)
        D = less_o @ less_v - (Wo @ Wv).double()
        error = float((D @ C.double() @ D.T).trace())
        torch.testing.assert_close(error, float(S[rank:].square().sum()), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(error, float(best[rank:].square().sum()), rtol=1e-6, atol=1e-6)


def test_scores_are_root_mean_squares_of_queries_and_keys() -> None:
    X = torch.randn(500, 12, generator=DRAW)
    Wq, Wk = torch.randn(4, 6, 12, generator=DRAW), torch.randn(2, 6, 12, generator=DRAW)
    pairs = ((0, 3), (1, 4), (2,), (5,))
    q, k = (torch.einsum("ti,hdi->thd", X, W).square().mean(0) for W in (Wq, Wk))
    expected = [
        torch.stack([q[h, list(p)].sum() * k[h // 2, list(p)].sum() for h in range(4)]).sqrt().sum()
        for p in pairs
    ]
    found = query_key_scores(X.T @ X / 500, Wq, Wk, pairs)
    torch.testing.assert_close(found.float(), torch.stack(expected), rtol=1e-4, atol=1e-4)
