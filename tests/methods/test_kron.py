"""Kron: metrics, rounding, reasons."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.lowrank.kron import Kron
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.registry import format_named, method_named
from blockwright.types import KroneckerSolution, Statistics
from tests.layers import Layer, gram, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=48, in_features=64, tokens=400)


def test_what_was_seen_of_the_inputs_lowers_the_error(layer: Layer) -> None:
    errors = [
        layer.heldout_error(method.solve(layer.W_OI, layer.statistics, format).weight())
        for format in [format_named("kron2-p50")]
        for method in (Kron(), Kron(rounds=0), Kron(metric="weight"))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[2]


def test_left_factors_make_up_for_the_rounding_of_the_right_ones(layer: Layer) -> None:
    format, H = format_named("kron2-r16+int3-g32"), gram(layer.X_TI)
    found = Kron().solve(layer.W_OI, layer.statistics, format)
    plain = Kron().solve(layer.W_OI, layer.statistics, format_named("kron2-r16"))
    nearest = format.values.nearest  # type: ignore[attr-defined]
    rounded = KroneckerSolution(
        split=plain.split,
        left=nearest(plain.left.weight()),
        right=nearest(plain.right.weight()),
    )
    errors = [quadratic_error(each.weight() - layer.W_OI, H) for each in (found, rounded)]
    assert errors[0] < errors[1]


def test_rows_weighed_by_gradients_lower_the_second_order_loss(layer: Layer) -> None:
    G_O, H = torch.logspace(-2, 2, 48), gram(layer.X_TI)
    seen = Statistics(tokens=400, input_gram=H, output_gradient=G_O)
    losses = []
    for fisher in (True, False):
        found = Kron(fisher=fisher).solve(layer.W_OI, seen, format_named("kron2-r12"))
        losses.append(float((G_O * row_errors(found.weight() - layer.W_OI, H)).sum()))
    assert losses[0] < 0.7 * losses[1]
    with pytest.raises(NumericalError, match=r"all 48 rows, not 8; use kron4-\*"):
        Kron(fisher=True).solve(layer.W_OI, seen, format_named("kron8x4-r2"))


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    format = format_named("kron2-r4")
    with pytest.raises(NumericalError, match="no calibration token"):
        Kron().solve(layer.W_OI, Statistics(tokens=0, input_gram=torch.zeros(64, 64)), format)
    for option, value in (("metric", "fisher"), ("rounds", "-1"), ("damping", "-1.0")):
        with pytest.raises(CandidateError, match=option):
            method_named("kron", ((option, value),))
    with pytest.raises(CandidateError, match="fills kron"):
        Kron().solve(layer.W_OI, layer.statistics, format_named("rank-r4"))
