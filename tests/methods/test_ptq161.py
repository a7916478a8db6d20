"""PTQ1.61: what is fitted is best, and nothing gets worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.ptq161 import Ptq161
from blockwright.numerics.grids import OffsetGrid
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.scale_refit import fit_coefficients
from blockwright.registry import format_named
from blockwright.types import SalientSolution, Statistic, Statistics
from tests.layers import Layer, outlier_layer

FORMAT = format_named("bin-p20")
PLAIN = Ptq161(rounds=0, passes=0, unbiased=False)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=24, in_features=128, tokens=300)


def error(layer: Layer, W_hat: Tensor) -> float:
    return quadratic_error(W_hat - layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM))


def test_no_small_change_of_a_row_or_a_factor_lowers_the_error(layer: Layer) -> None:
    found = PLAIN.solve(layer.W_OI, layer.statistics, FORMAT)
    assert isinstance(found.rest.grid, OffsetGrid)
    least = error(layer, found.weight())
    for change in (0.98, 1.02):
        for name in ("scale", "offset"):
            values = getattr(found.rest.grid, name)
            grid = replace(found.rest.grid, **{name: values * change})
            moved = replace(found, rest=replace(found.rest, grid=grid))
            assert error(layer, moved.weight()) > least
        moved = replace(found, factor_J=found.factor_J * torch.linspace(1, change, 96))
        assert error(layer, moved.weight()) > least


def test_coefficients_of_least_squares_are_found_again() -> None:
    random = torch.Generator().manual_seed(0)
    bases = torch.randn(3, 5, 16, generator=random)
    wanted = torch.randn(5, 3, generator=random)
    X = torch.randn(40, 16, generator=random)
    W = torch.einsum("or,roi->oi", wanted, bases)
    found = fit_coefficients(bases.unbind(), W, X.T @ X / 40, torch.zeros(5, 3))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    bases[1, 2] = 0
    kept = fit_coefficients(bases.unbind(), W, X.T @ X / 40, torch.full((5, 3), 7.0))
    assert float(kept[2, 1]) == 7


def test_every_round_and_pass_is_at_least_as_good(layer: Layer) -> None:
    errors = [
        error(
            layer,
            Ptq161(rounds=rounds, passes=passes, unbiased=False)
            .solve(layer.W_OI, layer.statistics, FORMAT)
            .weight(),
        )
        for rounds, passes in ((0, 0), (1, 0), (1, 1), (1, 3))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.9 * errors[0]


def test_zero_is_positive_and_zero_rows_stay(layer: Layer) -> None:
    W = layer.W_OI.clone()
    W[0] = 0
    W[1] = 0.125  # one value, but columns have factors that other rows chose
    W[2, ::2], W[2, 1::2] = 0.0, -0.25
    found = PLAIN.solve(W, layer.statistics, FORMAT)
    assert isinstance(found, SalientSolution)
    assert torch.equal(found.weight()[0], W[0])
    assert (found.weight()[1] > 0).all()
    is_rest = torch.ones(128, dtype=torch.bool).index_fill_(0, found.columns_K, False)
    above = W[:, is_rest] >= W[:, is_rest].mean(1, keepdim=True)
    assert torch.equal(found.rest.codes_OI.bool(), above)


def test_outputs_follow_the_originals(layer: Layer) -> None:
    found = Ptq161().solve(layer.W_OI, layer.statistics, FORMAT)
    PH = layer.W_OI @ layer.statistics.need(Statistic.INPUT_GRAM)
    gains = (PH * found.weight()).sum(1) / (PH * layer.W_OI).sum(1)
    assert (gains - 1).abs().max() < 0.02


def test_sites_without_tokens_other_formats_and_bad_options_are_refused(layer: Layer) -> None:
    with pytest.raises(NumericalError, match="no calibration token"):
        Ptq161().solve(layer.W_OI, Statistics(tokens=0), FORMAT)
    with pytest.raises(CandidateError, match="ptq161 cannot fill int4-g64"):
        Ptq161().solve(layer.W_OI, layer.statistics, format_named("int4-g64"))
    with pytest.raises(CandidateError, match="ptq161@damping: got 0"):
        Ptq161(damping=0)
    with pytest.raises(CandidateError, match="ptq161@rounds: got -1"):
        Ptq161(rounds=-1)
    gram = torch.full((128, 128), torch.nan)
    broken = replace(layer.statistics, input_gram=gram)
    with pytest.raises(NumericalError, match="NaN"):
        Ptq161().solve(layer.W_OI, broken, FORMAT)
