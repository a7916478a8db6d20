"""Soft rounding: where it starts, where it ends, and what it gains."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import fit_range
from blockwright.tuning import SoftRounding, gram_error, tune_on_gram
from blockwright.tuning.soft_rounding import WARM_UP, beta_at
from tests.layers import gram, outlier_layer

BITS, GROUP = 3, 64
LAYER = outlier_layer(0, 128, 128, 1024)
GRID = AffineGrid(*fit_range(LAYER.W_OI.view(128, -1, GROUP), BITS, False), 1 << BITS, GROUP)
RTN = GRID.decode(GRID.encode(LAYER.W_OI, slice(None)), slice(None))


def rounding() -> SoftRounding:
    return SoftRounding(LAYER.W_OI, GRID.scale, GRID.zero_point, GRID.levels)


def train(soft: SoftRounding, steps: int = 800) -> float:
    """The error left, as a share of round-to-nearest's."""
    H = gram(LAYER.X_TI)
    unit = gram_error(RTN - LAYER.W_OI, H).item()
    best = tune_on_gram(
        soft.weight,
        [(soft.V, 0.03)],
        LAYER.W_OI,
        H,
        unit=unit,
        steps=steps,
        judged=soft.rounded,
        extra_loss=lambda progress: 3 * soft.regularizer(progress),
    )
    return best / unit


def test_the_start_reproduces_what_is_inside_the_range() -> None:
    soft = rounding()
    scale, zero_point = (t.repeat_interleave(GROUP, 1) for t in (GRID.scale, GRID.zero_point))
    exact = LAYER.W_OI / scale + zero_point
    inside = (exact >= 0) & (exact <= GRID.levels - 1)
    assert inside.float().mean() > 0.9
    assert (soft.weight() - LAYER.W_OI).abs()[inside].max() < 1e-6


def test_decided_at_the_start_it_is_round_to_nearest() -> None:
    """Ties aside, of which random weights have none."""
    assert torch.equal(rounding().codes(), GRID.encode(LAYER.W_OI, slice(None)))


def test_codes_and_rounded_weight_are_one_and_stay_within_a_step() -> None:
    soft = rounding()
    train(soft, steps=50)
    weight = soft.rounded().detach()
    torch.testing.assert_close(weight, GRID.decode(soft.codes(), slice(None)))
    scale = GRID.scale.repeat_interleave(GROUP, 1)
    inside = (RTN - LAYER.W_OI).abs() <= scale / 2 + 1e-6
    assert ((weight - LAYER.W_OI).abs() <= scale * 1.001)[inside].all()
    assert soft.codes().max() < 1 << BITS


def test_the_regularizer_vanishes_when_all_is_decided() -> None:
    soft = rounding()
    assert soft.regularizer(WARM_UP).item() == 0
    assert soft.regularizer(0.5).item() > 0
    with torch.no_grad():
        soft.V.copy_(torch.where(soft.V > 0, 20.0, -20.0))
    assert soft.regularizer(0.5).item() == pytest.approx(0, abs=1e-3)


def test_beta_falls_from_20_to_2() -> None:
    assert beta_at(WARM_UP) == pytest.approx(20)
    assert beta_at(1.0) == pytest.approx(2)


def test_it_beats_rounding_to_nearest_on_other_inputs() -> None:
    soft = rounding()
    assert train(soft) < 0.85
    found = LAYER.heldout_error(soft.rounded().detach())
    assert found < 0.85 * LAYER.heldout_error(RTN)


def test_on_a_tiny_row_it_comes_close_to_the_best_of_all_roundings() -> None:
    W, x = LAYER.W_OI[:1, :8].clone(), LAYER.X_TI[:, :8]
    H = gram(x)
    scale, zero_point = fit_range(W.view(1, 1, 8), BITS, False)
    soft = SoftRounding(W, scale, zero_point, 1 << BITS)
    nearest = gram_error(soft.rounded() - W, H).item()
    floor = ((W / scale).floor() + zero_point)[0]
    choices = torch.tensor(list(product((0.0, 1.0), repeat=8)))
    all_weights = ((floor + choices).clamp(0, (1 << BITS) - 1) - zero_point) * scale
    errors = ((all_weights - W) @ H * (all_weights - W)).sum(1)
    found = tune_on_gram(
        soft.weight,
        [(soft.V, 0.03)],
        W,
        H,
        unit=nearest,
        steps=600,
        judged=soft.rounded,
        extra_loss=soft.regularizer,
        checks=20,
    )
    assert errors.min().item() * (1 - 1e-4) <= found <= nearest
    assert found <= errors.min().item() + 0.3 * (nearest - errors.min().item())
