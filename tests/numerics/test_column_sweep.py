"""The column sweep: tiles change nothing but rounding."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import TILE, sweep, tiles_of
from blockwright.numerics.inverse_hessian import damped, factor_damped, upper_factor
from blockwright.numerics.losses import row_errors
from blockwright.registry import format_named
from blockwright.types import GridFormat
from tests.layers import gram, outlier_layer


@pytest.mark.parametrize("group_size", [1, 8, 40, 64, 96, 128, 130, 300, 1000])
def test_tiles_cover_every_column_once_and_let_no_group_start_behind_its_tile(
    group_size: int,
) -> None:
    tiles = tiles_of(1000, group_size)
    assert [i for tile in tiles for i in range(1000)[tile]] == list(range(1000))
    assert all(tile.stop - tile.start <= TILE for tile in tiles)
    for tile in tiles:
        for start in range(0, 1000, group_size):
            whole = tile.start <= start and min(start + group_size, 1000) <= tile.stop
            assert whole or start == tile.start or not tile.start < start < tile.stop


def test_tiling_changes_only_rounding() -> None:
    layer = outlier_layer(0, out_features=40, in_features=320, tokens=600)
    format = format_named("int4-g64")
    assert isinstance(format, GridFormat)
    grid, U = format.fit_grid(layer.W_OI), upper_factor(gram(layer.X_TI), 0.01)
    results = []
    for tiles in ([slice(j, j + 1) for j in range(320)], tiles_of(320), [slice(0, 320)]):
        Q = layer.W_OI.T.contiguous()
        sweep(Q, U, column_rounder(grid, torch.arange(320)), tiles)
        results.append(Q)
    for Q in results[1:]:
        assert (results[0] == Q).float().mean() >= 0.999


@pytest.mark.parametrize("sees", [TILE, 12])
def test_the_error_it_returns_is_that_of_the_damped_gram(sees: int) -> None:
    layer = outlier_layer(0, out_features=24, in_features=200, tokens=600)
    format = format_named("int3-row")
    assert isinstance(format, GridFormat)
    H = gram(layer.X_TI)
    H[7], H[:, 7] = 0, 0
    U, added = factor_damped(H, 0.01)
    Q = layer.W_OI.T.contiguous()
    rounder = column_rounder(format.fit_grid(layer.W_OI), torch.arange(200))
    errors = sweep(Q, U, rounder, tiles_of(200), sees=sees)
    expected = row_errors(Q.T - layer.W_OI, H + added.diag())
    torch.testing.assert_close(errors, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(H + added.diag(), damped(H, 0.01))
