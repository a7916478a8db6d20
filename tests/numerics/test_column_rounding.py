"""The fast column rounder against encode and decode."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.column_rounding import column_rounder, reference
from blockwright.numerics.grids import AffineGrid


@pytest.mark.parametrize("levels", [4, 8, 256])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 4, 12])
def test_fast_path_rounds_as_encode_and_decode_do(
    levels: int, symmetric: bool, group_size: int
) -> None:
    random = torch.Generator().manual_seed(levels + group_size)
    groups = 12 // group_size if group_size else 1
    scale = torch.rand(33, groups, generator=random).add_(0.01).bfloat16().float()
    zero_point = torch.randint(0, levels, (33, groups), generator=random).float()
    if symmetric:
        zero_point.fill_(levels // 2)
    grid = AffineGrid(scale, zero_point, levels, group_size)
    order = torch.randperm(12, generator=random)
    fast, plain = column_rounder(grid, order), reference(grid, order)
    for j in range(12):
        w = torch.randn(33, generator=random) * levels
        w[:3] = torch.tensor([0.0, 1e30, -1e30])
        assert torch.equal(fast(j, w), plain(j, w))
