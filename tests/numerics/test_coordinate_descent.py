"""Coordinate descent and scales in closed form, against exhaustive search and least squares."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import tiles_of
from blockwright.numerics.coordinate_descent import descend
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.inverse_hessian import damped
from blockwright.numerics.losses import row_errors
from blockwright.numerics.matching import matched_weight
from blockwright.numerics.outliers import outlier_bound
from blockwright.numerics.ranges import fit_range
from blockwright.numerics.scale_refit import refit_scales
from tests.layers import gram, outlier_layer

LAYER = outlier_layer(0, 24, 192, 600)
H = damped(gram(LAYER.X_TI), 0.01)
ORDER = torch.arange(192)


def grid_of(W_OI: Tensor, bits: int = 2, size: int = 64) -> AffineGrid:
    scale, zero_point = fit_range(W_OI.view(len(W_OI), -1, size), bits, False)
    return AffineGrid(scale, zero_point, 1 << bits, size)


GRID = grid_of(LAYER.W_OI)
NEAREST = GRID.encode(LAYER.W_OI, slice(None))


def passes(count: int, width: int = 128) -> Tensor:
    """Q [O, I] after some passes from round-to-nearest."""
    Q_IR = GRID.decode(NEAREST, slice(None)).T.contiguous()
    tiles = [slice(a, min(a + width, 192)) for a in range(0, 192, width)]
    for _ in range(count):
        descend(Q_IR, LAYER.W_OI.T, H, column_rounder(GRID, ORDER), tiles)
    return Q_IR.T


def test_no_pass_raises_the_error_of_a_row() -> None:
    errors = [row_errors(passes(count) - LAYER.W_OI, H) for count in range(4)]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()


def test_tiles_change_nothing() -> None:
    torch.testing.assert_close(passes(1, 192), passes(1, 40), rtol=1e-5, atol=1e-6)


def test_what_it_ends_with_cannot_be_bettered_by_any_one_code() -> None:
    Q_OI, tiles = passes(30), tiles_of(192)
    again = Q_OI.T.clone()
    descend(again, LAYER.W_OI.T, H, column_rounder(GRID, ORDER), tiles)
    assert torch.equal(again.T, Q_OI)
    least, codes = row_errors(Q_OI - LAYER.W_OI, H), GRID.encode(Q_OI, slice(None))
    for column, code in product(range(0, 192, 17), range(4)):
        other = codes.clone()
        other[:, column] = code
        errors = row_errors(GRID.decode(other, slice(None)) - LAYER.W_OI, H)
        assert (errors >= least * (1 - 1e-4)).all()


def test_refitted_scales_are_those_of_least_squares() -> None:
    refitted = refit_scales(LAYER.W_OI, NEAREST, GRID, H)
    root = torch.linalg.cholesky(H.double())
    for row in (0, 7, 23):
        levels = (NEAREST[row].double().view(3, 64) - GRID.zero_point[row, :, None]).float()
        parts = torch.block_diag(*levels).double() @ root
        target = (LAYER.W_OI[row].double() @ root)[:, None]
        exact = torch.linalg.lstsq(parts.T, target).solution[:, 0]
        assert refitted.scale[row].double() == pytest.approx(exact.numpy(), rel=5e-3)


def test_refitted_scales_lower_the_error_and_are_stored_as_they_are() -> None:
    refitted = refit_scales(LAYER.W_OI, NEAREST, GRID, H)
    before, after = (
        row_errors(grid.decode(NEAREST, slice(None)) - LAYER.W_OI, H) for grid in (GRID, refitted)
    )
    assert after.sum() < 0.9 * before.sum()
    assert torch.equal(refitted.scale, refitted.scale.bfloat16().float())
    assert torch.equal(refitted.zero_point, GRID.zero_point)


def test_scales_without_a_best_value_stay() -> None:
    """A group whose codes all stand for zero."""
    codes = NEAREST.clone()
    codes[:, :64] = GRID.zero_point[:, :1].to(torch.uint8)
    refitted = refit_scales(LAYER.W_OI, codes, GRID, H)
    assert torch.equal(refitted.scale[:, 0], GRID.scale[:, 0])
    assert torch.isfinite(refitted.scale).all()


def test_scales_of_a_weight_on_the_grid_stay() -> None:
    W_OI = GRID.decode(NEAREST, slice(None))
    assert torch.equal(refit_scales(W_OI, NEAREST, GRID, H).scale, GRID.scale)


def test_rows_in_chunks_give_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = refit_scales(LAYER.W_OI, NEAREST, GRID, H).scale
    monkeypatch.setattr("blockwright.numerics.scale_refit.CHUNK_ELEMENTS", 5 * 192)
    torch.testing.assert_close(refit_scales(LAYER.W_OI, NEAREST, GRID, H).scale, whole)


def test_rows_by_themselves_take_one_scale() -> None:
    whole = replace(grid_of(LAYER.W_OI, 3, 192), group_size=0)
    codes = whole.encode(LAYER.W_OI, slice(None))
    refitted = refit_scales(LAYER.W_OI, codes, whole, H)
    assert refitted.scale.shape == (24, 1)


def test_the_matched_weight_gives_the_original_outputs_best() -> None:
    """Against least squares on the inputs themselves."""
    random = torch.Generator().manual_seed(3)
    x0 = LAYER.X_TI
    x = 0.9 * x0 + 0.1 * torch.randn(x0.shape, generator=random) * x0.std(0)
    V_OI = matched_weight(LAYER.W_OI, gram(x), x0.T @ x / len(x), damping=1e-6)
    exact = torch.linalg.lstsq(x.double(), (x0 @ LAYER.W_OI.T).double()).solution.T
    torch.testing.assert_close(V_OI, exact.float(), rtol=2e-2, atol=2e-4)


def test_on_the_original_inputs_the_matched_weight_is_the_weight() -> None:
    C = gram(LAYER.X_TI)
    assert torch.equal(matched_weight(LAYER.W_OI, C, C), LAYER.W_OI)


@pytest.mark.parametrize("values", [torch.zeros(9), torch.ones(64), torch.rand(3)])
def test_values_without_outliers_have_no_bound(values: Tensor) -> None:
    assert outlier_bound(values) == float("inf")
