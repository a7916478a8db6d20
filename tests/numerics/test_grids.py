"""AffineGrid: any columns give what the whole matrix gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid
from blockwright.types import Grid

O, I = 6, 96  # noqa: E741


def grid_of(group_size: int, bits: int = 4, seed: int = 0) -> AffineGrid:
    generator = torch.Generator().manual_seed(seed)
    groups = I // group_size if group_size else 1
    return AffineGrid(
        scale=torch.rand((O, groups), generator=generator).add(0.1).bfloat16().float(),
        zero_point=torch.randint(0, 1 << bits, (O, groups), generator=generator).float(),
        levels=1 << bits,
        group_size=group_size,
    )


def plain_decode(grid: AffineGrid, codes_OI: Tensor) -> Tensor:
    size = grid.group_size or I
    value = torch.empty(O, I)
    for row in range(O):
        for column in range(I):
            group = column // size
            value[row, column] = grid.scale[row, group] * (
                codes_OI[row, column].float() - grid.zero_point[row, group]
            )
    return value


SELECTIONS: list[slice | Tensor] = [
    slice(None),
    slice(0, I),
    slice(32, 64),
    slice(40, 41),
    slice(20, 50),
    slice(0, I, 7),
    slice(64, None),
    torch.tensor([95, 3, 40, 3]),
    torch.tensor([7]),
]


@pytest.mark.parametrize("group_size", [32, 16, 0])
@pytest.mark.parametrize("columns", SELECTIONS, ids=str)
def test_columns_give_what_the_whole_gives(group_size: int, columns: slice | Tensor) -> None:
    grid = grid_of(group_size)
    codes = torch.randint(
        0, 16, (O, I), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    values = plain_decode(grid, codes)
    assert torch.equal(grid.decode(codes[:, columns], columns), values[:, columns])
    encoded = grid.encode(values[:, columns], columns)
    assert encoded.dtype == torch.uint8
    assert torch.equal(encoded, codes[:, columns])


def test_codes_are_the_nearest_of_all_values() -> None:
    grid = grid_of(32, bits=3)
    W = torch.randn(O, I, generator=torch.Generator().manual_seed(2))
    codes = torch.arange(8, dtype=torch.uint8)
    distances = torch.stack(
        [(grid.decode(code.expand(O, I), slice(None)) - W).abs() for code in codes]
    )
    nearest = distances.min(0).values
    chosen = grid.decode(grid.encode(W, slice(None)), slice(None))
    assert torch.allclose((chosen - W).abs(), nearest, atol=1e-6)


def test_encoding_leaves_its_input_alone() -> None:
    W = torch.randn(O, I)
    before = W.clone()
    grid = grid_of(32)
    grid.decode(grid.encode(W, slice(None)), slice(None))
    assert torch.equal(W, before)


def test_replaced_takes_whole_groups_and_leaves_the_rest() -> None:
    grid, other = grid_of(32), grid_of(32, seed=9)
    part = AffineGrid(other.scale[:, 1:2], other.zero_point[:, 1:2], 16, 32)
    found = grid.replaced(slice(32, 64), part)
    assert torch.equal(found.scale[:, 1], other.scale[:, 1])
    assert torch.equal(found.zero_point[:, 1], other.zero_point[:, 1])
    assert torch.equal(found.scale[:, ::2], grid.scale[:, ::2])
    assert torch.equal(grid.scale, grid_of(32).scale)
    whole = grid_of(0).replaced(slice(None), grid_of(0, seed=9))
    assert torch.equal(whole.scale, grid_of(0, seed=9).scale)


def test_replaced_refuses_half_groups_and_other_grids() -> None:
    grid = grid_of(32)
    with pytest.raises(ValueError, match="whole groups of 32"):
        grid.replaced(slice(16, 48), grid)
    with pytest.raises(ValueError, match="do not fill"):
        grid.replaced(slice(0, 32), grid)
    with pytest.raises(ValueError, match="as many levels"):
        grid.replaced(slice(None), grid_of(32, bits=3))


def test_an_affine_grid_is_a_grid() -> None:
    assert isinstance(grid_of(32), Grid)
