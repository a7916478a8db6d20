"""2:4 on CUDA: offered only where it was probed."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.masks import keep_n_of_m
from blockwright.numerics.semi_structured import SemiStructuredMatrix


def test_a_cpu_has_no_such_product() -> None:
    W = torch.ones(64, 64, dtype=torch.bfloat16)
    assert SemiStructuredMatrix.of(W, 2, 4) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tokens", [1, 8, 33])
def test_the_product_is_that_of_the_dense_weight(tokens: int) -> None:
    W = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    W *= keep_n_of_m(W.float().abs(), 2, 4)
    matrix = SemiStructuredMatrix.of(W, 2, 4)
    assert matrix is not None
    x = torch.randn(2, tokens, 256, device="cuda", dtype=torch.bfloat16)
    exact = x @ W.T
    assert (matrix.product(x) - exact).abs().max() <= 2e-2 * exact.abs().max()
