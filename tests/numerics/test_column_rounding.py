"""The fast column rounder against encode and decode."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.codebooks import Codebook
from blockwright.numerics.column_rounding import column_rounder, reference
from blockwright.numerics.grids import AffineGrid, CodebookGrid, OffsetGrid
from blockwright.types import Grid


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
    check(AffineGrid(scale, zero_point, levels, group_size), levels, random)


@pytest.mark.parametrize("group_size", [0, 1, 4, 12])
def test_so_do_those_of_offsets_and_codebooks(group_size: int) -> None:
    random = torch.Generator().manual_seed(group_size)
    groups = 12 // group_size if group_size else 1
    scale, offset = torch.randn(2, 33, groups, generator=random).bfloat16().float()
    scale.abs_().add_(0.01)
    for levels in (2, 16, 256):
        check(OffsetGrid(scale, offset, levels, group_size), levels, random)
    check(CodebookGrid(scale, Codebook((0.0, 2.0, -1.0, 5.0, 0.5)), group_size), 4, random)


def check(grid: Grid, levels: int, random: torch.Generator) -> None:
    order = torch.randperm(12, generator=random)
    fast, plain = column_rounder(grid, order), reference(grid, order)
    for j in range(12):
        w = torch.randn(33, generator=random) * levels
        w[:3] = torch.tensor([0.0, 1e30, -1e30])
        assert torch.equal(fast(j, w), plain(j, w))
