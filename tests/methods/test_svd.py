"""Svd: metrics, stored factors, reasons."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.lowrank._factors import refit_left
from blockwright.methods.lowrank.svd import Svd
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named, method_named
from blockwright.types import FactoredSolution, Statistics, ValueFormat
from tests.layers import Layer, gram, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return synth_layer(0, features=96, tokens=800)


def test_plain_metric_is_the_truncated_svd_of_the_weight(layer: Layer) -> None:
    solution = Svd(metric="weight").solve(
        layer.W_OI, Statistics(tokens=0), format_named("rank-r20")
    )
    U, S, V = torch.linalg.svd(layer.W_OI, full_matrices=False)
    best = (U[:, :20] * S[:20]) @ V[:20]
    assert (solution.weight() - best).norm() < 1e-2 * best.norm()


def test_diagonal_metric_scales_inputs_by_their_root_mean_square(layer: Layer) -> None:
    diagonal = Svd(metric="diagonal", damping=0).solve(
        layer.W_OI, layer.statistics, format_named("rank-r20")
    )
    scale = gram(layer.X_TI).diagonal().sqrt()
    U, S, V = torch.linalg.svd(layer.W_OI * scale, full_matrices=False)
    best = (U[:, :20] * S[:20]) @ V[:20] / scale
    assert (diagonal.weight() - best).norm() < 2e-2 * best.norm()


def test_what_was_seen_of_the_inputs_lowers_the_error(layer: Layer) -> None:
    format = format_named("rank-p50")
    errors = [
        layer.heldout_error(Svd(metric=metric).solve(layer.W_OI, layer.statistics, format).weight())
        for metric in ("gram", "diagonal", "weight")
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.3 * errors[2]


def test_the_left_factor_makes_up_for_the_rounding_of_the_right_one(layer: Layer) -> None:
    format, H = format_named("rank-r32+int3-g32"), gram(layer.X_TI)
    found = Svd().solve(layer.W_OI, layer.statistics, format)
    plain = Svd().solve(layer.W_OI, layer.statistics, format_named("rank-r32"))
    values = format_named("int3-g32")
    assert isinstance(values, ValueFormat)
    rounded = FactoredSolution(
        left=values.nearest(plain.left.weight()), right=values.nearest(plain.right.weight())
    )
    errors = [quadratic_error(each.weight() - layer.W_OI, H) for each in (found, rounded)]
    assert errors[0] < 0.95 * errors[1]


def test_refitted_left_factor_is_the_least_squares_one(layer: Layer) -> None:
    H, right = gram(layer.X_TI), torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    left = refit_left(layer.W_OI, right, H)
    root = torch.linalg.cholesky(H.double())
    best = torch.linalg.lstsq((right.double() @ root).T, (layer.W_OI.double() @ root).T).solution.T
    torch.testing.assert_close(left.double(), best, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    format = format_named("rank-r4")
    with pytest.raises(NumericalError, match="no calibration token"):
        Svd().solve(layer.W_OI, Statistics(tokens=0, input_gram=torch.zeros(96, 96)), format)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        Svd(metric="weight").solve(layer.W_OI * float("nan"), Statistics(tokens=0), format)
    with pytest.raises(CandidateError, match="metric"):
        method_named("svd", (("metric", "fisher"),))
    with pytest.raises(CandidateError, match="damping"):
        method_named("svd", (("damping", "-1"),))
    with pytest.raises(CandidateError, match="factored formats"):
        Svd().solve(layer.W_OI, layer.statistics, format_named("int4"))
