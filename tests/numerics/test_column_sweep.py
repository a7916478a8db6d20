"""The column sweep: tiles change nothing but rounding."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import TILE, sweep, tiles_of
from blockwright.numerics.inverse_hessian import upper_factor
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
