"""Block-diagonal products against the dense ones."""

from __future__ import annotations

import torch

from blockwright.numerics.block_diagonal import (
    column_blocks_product,
    left_times,
    row_blocks_product,
    times_right,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_products_are_those_of_the_dense_matrix() -> None:
    A, B, W = random(2, 8, 8), random(5, 4, 4), random(16, 20)
    dense_A, dense_B = torch.block_diag(*A), torch.block_diag(*B)
    assert torch.allclose(left_times(A, W), dense_A @ W)
    assert torch.allclose(times_right(W, B), W @ dense_B)
    assert torch.allclose(times_right(W.view(2, 8, 20), B), (W @ dense_B).view(2, 8, 20))


def test_block_products_are_the_diagonal_blocks() -> None:
    L, R = random(16, 20), random(16, 20).flip(0)
    for found, whole, size in (
        (row_blocks_product(L, R, 8), L @ R.T, 8),
        (column_blocks_product(L, R, 4), L.T @ R, 4),
    ):
        for j, block in enumerate(found):
            here = slice(j * size, (j + 1) * size)
            assert torch.allclose(block, whole[here, here])
