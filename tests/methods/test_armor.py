"""Armor: what it starts from, what it gains, and what it cannot do."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.armor import Armor
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.registry import format_named, method_named
from tests.layers import Layer, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return synth_layer(0, features=128, tokens=1000)


def error(layer: Layer, method: object, format: str) -> float:
    solve = getattr(method, "solve")  # noqa: B009
    return layer.heldout_error(solve(layer.W_OI, layer.statistics, format_named(format)).weight())


def test_without_search_it_is_the_mask_of_wanda(layer: Layer) -> None:
    for refit in (False, True):
        armor = error(layer, Armor(iterations=0, refit=refit), "armor-b8")
        wanda = error(layer, Wanda(refit=refit), "sparse2of4")
        assert armor == pytest.approx(wanda, rel=0.03)


def test_wrappers_beat_the_refitted_sweep(layer: Layer) -> None:
    sweep = error(layer, Sparsegpt(), "sparse2of4")
    found = [error(layer, Armor(iterations=100), f"armor-b{b}") for b in (8, 16)]
    assert found[1] < found[0] < 0.8 * sweep


def test_the_seed_decides_the_groups(layer: Layer) -> None:
    format = format_named("armor-b8")
    masks = [
        Armor(iterations=3, seed=seed).solve(layer.W_OI, layer.statistics, format).core.mask_OI
        for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_zeros_and_a_rate_that_is_too_large(layer: Layer) -> None:
    format = format_named("armor-b8")
    zeros = Armor(iterations=3).solve(torch.zeros(16, 128), layer.statistics, format)
    assert not zeros.weight().any()
    wild = Armor(iterations=20, rate=1e30)
    assert torch.isfinite(wild.solve(layer.W_OI, layer.statistics, format).weight()).all()
    with pytest.raises(CandidateError, match="armor cannot fill sparse2of4"):
        Armor().solve(layer.W_OI, layer.statistics, format_named("sparse2of4"))
    with pytest.raises(NumericalError, match="NaN"):
        Armor().solve(layer.W_OI * float("nan"), layer.statistics, format)


@pytest.mark.parametrize(("option", "value"), [("iterations", "-1"), ("rate", "0")])
def test_options_out_of_range_are_refused(option: str, value: str) -> None:
    with pytest.raises(CandidateError, match=f"armor@{option}: got {value}"):
        method_named("armor", ((option, value),))
