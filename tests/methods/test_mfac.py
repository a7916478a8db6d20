"""Mfac: what it is with enough samples, its rounds, and what it cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.magnitude import Magnitude
from blockwright.methods.sparsify.mfac import Mfac
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.numerics.masked_refit import damped, exact_refit
from blockwright.registry import format_named, method_named
from blockwright.types import MaskedFormat, Statistics
from tests.layers import Layer, gram, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return synth_layer(0, features=64, tokens=800)


def sampled(layer: Layer, rows: int) -> Statistics:
    return replace(layer.statistics, input_samples=layer.X_TI[:rows])


def masked(name: str) -> MaskedFormat:
    format = format_named(name)
    assert isinstance(format, MaskedFormat)
    return format


def test_with_all_tokens_its_values_are_those_of_the_masked_refit(layer: Layer) -> None:
    found = Mfac().solve(layer.W_OI, sampled(layer, 800), masked("sparse50"))
    Hd = damped(gram(layer.X_TI), 0.01)
    expected = exact_refit(layer.W_OI, Hd, found.mask_OI)
    assert (found.weight() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("format", ["sparse50", "sparse80", "sparse2of4", "panel16-50"])
def test_samples_beat_no_samples_and_the_diagonal(layer: Layer, format: str) -> None:
    statistics = sampled(layer, 200)
    mine, magnitude, wanda = (
        layer.heldout_error(method.solve(layer.W_OI, statistics, masked(format)).weight())
        for method in (Mfac(), Magnitude(), Wanda(refit=False))
    )
    assert mine < 0.6 * wanda
    assert mine < 0.3 * magnitude


def test_rounds_fall_to_what_the_format_keeps() -> None:
    assert Mfac().kept_in_rounds(256, masked("sparse50")) == [215, 181, 152, 128]
    assert Mfac(rounds=1).kept_in_rounds(256, masked("sparse50")) == [128]
    assert Mfac().kept_in_rounds(256, masked("sparse2of4")) == [128]
    assert Mfac().kept_in_rounds(256, masked("panel16x16-50")) == [208, 176, 160, 128]


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    format = masked("sparse50")
    for statistics, reason in (
        (Statistics(tokens=0, input_samples=layer.X_TI[:5]), "no calibration token"),
        (Statistics(tokens=9, input_samples=torch.zeros(5, 64)), "zero or not finite"),
    ):
        with pytest.raises(NumericalError, match=reason):
            Mfac().solve(layer.W_OI, statistics, format)
    for option in ("rounds", "damping"):
        with pytest.raises(CandidateError, match=f"mfac@{option}: got 0"):
            method_named("mfac", ((option, "0"),))
