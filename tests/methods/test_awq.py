"""The equations of AWQ."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.awq import LARGEST_SCALE, LEAST_SCALE, Awq, scale_of
from blockwright.registry import format_named
from blockwright.types import GridFormat, Statistics
from tests.layers import outlier_layer


def int4() -> GridFormat:
    format = format_named("int4-g32")
    assert isinstance(format, GridFormat)
    return format


def test_a_scale_is_a_power_of_the_mean_with_reciprocal_ends() -> None:
    s_X = torch.tensor([0.01, 0.1, 1.0, 4.0])
    for alpha in (0.25, 0.5, 0.75):
        t = scale_of(s_X, alpha)
        assert (t.max() * t.min()).item() == pytest.approx(1.0, rel=1e-5)
        expected = (s_X[1:] / s_X[:-1]) ** alpha
        torch.testing.assert_close(t[1:] / t[:-1], expected, rtol=1e-5, atol=0)
    assert torch.equal(scale_of(s_X, 0.0), torch.ones(4))


def test_channels_without_input_and_extreme_ones_have_safe_scales() -> None:
    t = scale_of(torch.tensor([0.0, 1e-12, 1.0, 1e12]), 0.95)
    assert t[0] == 1
    assert t.min() >= LEAST_SCALE
    assert t.max() <= LARGEST_SCALE
    assert torch.equal(scale_of(torch.zeros(3), 0.5), torch.ones(3))


def test_the_scale_is_the_best_of_the_grid_for_all_linears_together() -> None:
    """The plain twin: inputs and outputs in place of the Gram, one alpha after another."""
    layer = outlier_layer(0, out_features=48, in_features=64, tokens=256)
    weights = [layer.W_OI[:16].contiguous(), layer.W_OI[16:].contiguous()]
    errors = []
    for step in range(20):
        t = scale_of(layer.X_TI.abs().mean(0), step / 20)
        total = 0.0
        for W in weights:
            grid = int4().fit_grid(W * t)
            W_hat = grid.decode(grid.encode(W * t, slice(None)), slice(None)) / t
            total += float((layer.X_TI @ (W_hat - W).T).square().sum(1).mean())
        errors.append((total, t))
    best = min(errors, key=lambda item: item[0])[1]
    found = Awq(search="none").choose_scale(weights, layer.statistics, int4())
    torch.testing.assert_close(found, best)


def test_refuses_what_is_not_finite_and_what_it_cannot_scale_for() -> None:
    layer = outlier_layer(0, out_features=16, in_features=64, tokens=64)
    broken = layer.W_OI.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        Awq().choose_scale([broken], layer.statistics, int4())
    with pytest.raises(CandidateError, match="awq cannot scale for rank-p50"):
        Awq().choose_scale([layer.W_OI], layer.statistics, format_named("rank-p50"))
    with pytest.raises(CandidateError, match="awq@steps"):
        Awq(steps=0)


def test_statistics_of_scaled_inputs_are_those_of_the_inputs_scaled() -> None:
    layer = outlier_layer(0, out_features=16, in_features=64, tokens=64)
    t = torch.linspace(0.5, 2.0, 64)
    found = layer.statistics.scaled(t)
    X = layer.X_TI / t
    assert found.input_gram is not None
    torch.testing.assert_close(found.input_gram, X.T @ X / len(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.input_absmax, X.abs().amax(0))
    torch.testing.assert_close(found.input_absmean, X.abs().mean(0), rtol=1e-4, atol=1e-6)
    assert Statistics(tokens=3).scaled(t) == Statistics(tokens=3)
