"""Wanda: the mask of the diagonal model, exhaustively, and what the refit adds."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named, method_named
from blockwright.types import Statistics
from tests.layers import Layer, gram, outlier_layer, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(1, out_features=16, in_features=8, tokens=200, outlier_channels=2)


def test_no_other_mask_has_a_lower_loss_of_the_diagonal_model(layer: Layer) -> None:
    h = gram(layer.X_TI).diagonal()
    mask = Wanda(refit=False).solve(layer.W_OI, layer.statistics, format_named("sparse50")).mask_OI
    costs = layer.W_OI.square() * h
    for row, kept in zip(costs, mask, strict=True):
        losses = [row[list(zeroed)].sum() for zeroed in combinations(range(8), 4)]
        assert float(row[~kept].sum()) == pytest.approx(float(min(losses)), rel=1e-5)


def test_equal_inputs_make_it_magnitude(layer: Layer) -> None:
    equal = Statistics(tokens=9, input_gram=3 * torch.eye(8))
    format = format_named("sparse2of4")
    wanda = Wanda(refit=False).solve(layer.W_OI, equal, format)
    magnitude = method_named("magnitude").solve(layer.W_OI, Statistics(tokens=0), format)
    assert torch.equal(wanda.weight(), magnitude.weight())


@pytest.mark.parametrize("format", ["sparse50", "sparse2of4", "sparse80"])
def test_the_refit_keeps_the_mask_and_lowers_the_error(format: str) -> None:
    layer, fmt = synth_layer(0, features=96, tokens=800), format_named(format)
    plain = Wanda(refit=False).solve(layer.W_OI, layer.statistics, fmt)
    refitted = Wanda().solve(layer.W_OI, layer.statistics, fmt)
    assert torch.equal(plain.mask_OI, refitted.mask_OI)
    H = gram(layer.X_TI)
    errors = [quadratic_error(each.weight() - layer.W_OI, H) for each in (refitted, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_few_tokens_are_trusted_less() -> None:
    """Half as many tokens as inputs: the refit still helps, as it would not at its own damping."""
    full, format = outlier_layer(0), format_named("sparse50")
    few = replace(full, X_TI=full.X_TI[:128])
    as_given = replace(few.statistics, tokens=512)
    plain = full.heldout_error(Wanda(refit=False).solve(full.W_OI, few.statistics, format).weight())
    careful, trusting = (
        full.heldout_error(Wanda().solve(full.W_OI, statistics, format).weight())
        for statistics in (few.statistics, as_given)
    )
    assert careful < 0.8 * plain < plain < trusting


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    nothing = Statistics(tokens=0, input_gram=torch.zeros(8, 8))
    with pytest.raises(NumericalError, match="no calibration token"):
        Wanda().solve(layer.W_OI, nothing, format_named("sparse50"))
    with pytest.raises(CandidateError, match="damping"):
        method_named("wanda", (("damping", "inf"),))
    with pytest.raises(CandidateError, match="allowed: true, false"):
        method_named("wanda", (("refit", "maybe"),))
