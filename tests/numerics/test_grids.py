"""Grids: any columns give what the whole matrix gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blockwright.numerics.codebooks import Codebook
from blockwright.numerics.grids import AffineGrid, CodebookGrid, OffsetGrid
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


def offset_grid_of(group_size: int, seed: int = 0) -> OffsetGrid:
    grid = grid_of(group_size, seed=seed)
    offset = grid.zero_point.sub(8).mul(0.3).bfloat16().float()
    return OffsetGrid(grid.scale, offset, grid.levels, group_size)


def codebook_grid_of(group_size: int, seed: int = 0) -> CodebookGrid:
    values = tuple((code - 8) * abs(code - 8) / 64 for code in range(16))
    return CodebookGrid(grid_of(group_size, seed=seed).scale, Codebook(values), group_size)


AnyGrid = AffineGrid | OffsetGrid | CodebookGrid
GRIDS = (grid_of, offset_grid_of, codebook_grid_of)


def plain_value(grid: AnyGrid, code: int, row: int, group: int) -> float:
    scale = float(grid.scale[row, group])
    if isinstance(grid, AffineGrid):
        return scale * (code - float(grid.zero_point[row, group]))
    if isinstance(grid, OffsetGrid):
        return scale * (code - 8) + float(grid.offset[row, group])
    return scale * grid.codebook.values[code]


def plain_decode(grid: AnyGrid, codes_OI: Tensor) -> Tensor:
    size = grid.group_size or I
    value = torch.empty(O, I)
    for row in range(O):
        for column in range(I):
            value[row, column] = plain_value(grid, int(codes_OI[row, column]), row, column // size)
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


@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("group_size", [32, 16, 0])
@pytest.mark.parametrize("columns", SELECTIONS, ids=str)
def test_columns_give_what_the_whole_gives(
    make: Callable[[int], AnyGrid], group_size: int, columns: slice | Tensor
) -> None:
    grid = make(group_size)
    codes = torch.randint(
        0, 16, (O, I), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    values = plain_decode(grid, codes)
    decoded = grid.decode(codes[:, columns], columns)
    assert torch.equal(decoded, grid.decode(codes, slice(None))[:, columns])
    torch.testing.assert_close(decoded, values[:, columns], rtol=1e-6, atol=1e-6)
    encoded = grid.encode(values[:, columns], columns)
    assert encoded.dtype == torch.uint8
    assert torch.equal(encoded, codes[:, columns])


@pytest.mark.parametrize("make", GRIDS)
def test_codes_are_the_nearest_of_all_values(make: Callable[[int], AnyGrid]) -> None:
    grid = make(32)
    W = torch.randn(O, I, generator=torch.Generator().manual_seed(2))
    codes = torch.arange(16, dtype=torch.uint8)
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


@pytest.mark.parametrize("make", [offset_grid_of, codebook_grid_of])
def test_replaced_takes_all_that_groups_have(make: Callable[..., AnyGrid]) -> None:
    codes = torch.arange(O * I).remainder(16).to(torch.uint8).view(O, I)
    grid, other = make(32), make(32, seed=9)
    part = {name: value[:, 1:2] for name, value in vars(other).items() if torch.is_tensor(value)}
    found = grid.replaced(slice(32, 64), replace(other, **part))  # type: ignore[arg-type]
    taken = other.decode(codes, slice(None))[:, 32:64]
    expected = grid.decode(codes, slice(None)).index_copy(1, torch.arange(32, 64), taken)
    assert torch.equal(found.decode(codes, slice(None)), expected)
    with pytest.raises(ValueError, match="can be taken over"):
        grid.replaced(slice(32, 64), grid_of(32))


def test_replaced_refuses_half_groups_and_other_grids() -> None:
    grid = grid_of(32)
    with pytest.raises(ValueError, match="whole groups of 32"):
        grid.replaced(slice(16, 48), grid)
    with pytest.raises(ValueError, match="do not fill"):
        grid.replaced(slice(0, 32), grid)
    with pytest.raises(ValueError, match="as many levels"):
        grid.replaced(slice(None), grid_of(32, bits=3))


@pytest.mark.parametrize("make", GRIDS)
def test_all_are_grids(make: Callable[[int], AnyGrid]) -> None:
    assert isinstance(make(32), Grid)
