"""Admm: masks that are allowed, its limit, and what it cannot do."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.methods.sparsify.admm import Admm
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.numerics.masked_refit import damped, exact_refit
from blockwright.registry import format_named, method_named
from tests.layers import Layer, gram, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return synth_layer(0, features=96, tokens=800)


@pytest.mark.parametrize("format", ["sparse2of4", "sparse50", "sparse80"])
def test_no_row_ends_worse_than_with_the_mask_of_wanda(layer: Layer, format: str) -> None:
    fmt, H = format_named(format), gram(layer.X_TI)
    masks = [m.solve(layer.W_OI, layer.statistics, fmt).mask_OI for m in (Admm(), Wanda())]
    Hd = damped(H, 0.01)
    mine, wanda = (row_errors(exact_refit(layer.W_OI, Hd, m) - layer.W_OI, Hd) for m in masks)
    assert (mine <= wanda * 1.01).all()  # trials are within 0.4%
    assert mine.sum() < 0.95 * wanda.sum()


def test_a_strong_pull_is_the_one_shot_projection(layer: Layer) -> None:
    format = format_named("sparse50")
    strong = Admm(rho=1e4).solve(layer.W_OI, layer.statistics, format)
    wanda = Wanda().solve(layer.W_OI, layer.statistics, format)
    assert (strong.mask_OI == wanda.mask_OI).float().mean() > 0.999


def test_quantized_values_are_rounded_in_a_sweep(layer: Layer) -> None:
    format = format_named("sparse2of4+int3")
    swept = Admm().solve(layer.W_OI, layer.statistics, format)
    plain = Admm().solve(layer.W_OI, layer.statistics, format_named("sparse2of4"))
    assert torch.equal(swept.mask_OI, plain.mask_OI)
    nearest = getattr(format, "values").nearest(plain.values.weight()).weight()  # noqa: B009
    rounded = torch.zeros_like(layer.W_OI).masked_scatter(plain.mask_OI, nearest)
    H = gram(layer.X_TI)
    errors = [quadratic_error(W - layer.W_OI, H) for W in (swept.weight(), rounded)]
    assert errors[0] < 0.8 * errors[1]


def test_rows_of_zeros_keep_their_count(layer: Layer) -> None:
    W = layer.W_OI.clone()
    W[:3] = 0
    found = Admm().solve(W, layer.statistics, format_named("sparse80"))
    assert (found.mask_OI.sum(1) == 19).all()


@pytest.mark.parametrize("option", ["rho", "iterations", "damping"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(CandidateError, match=f"admm@{option}: got 0"):
        method_named("admm", ((option, "0"),))
