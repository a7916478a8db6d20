"""Lord: projections, the rows that stand for them, rows weighed by gradients."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.lowrank.lord import Lord
from blockwright.methods.lowrank.svd import Svd
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.registry import format_named, method_named
from blockwright.types import FactoredSolution, InterpolatedSolution, Statistics
from tests.layers import Layer, gram, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=48, in_features=64, tokens=400)


def seen(layer: Layer, G_O: torch.Tensor) -> Statistics:
    return Statistics(tokens=400, input_gram=gram(layer.X_TI), output_gradient=G_O)


def test_outputs_are_those_of_the_weight_projected_onto_their_main_subspace(layer: Layer) -> None:
    found = Lord(damping=0).solve(layer.W_OI, layer.statistics, format_named("rank-r12"))
    Y = (layer.X_TI @ layer.W_OI.T).double()
    V = torch.linalg.eigh(Y.T @ Y).eigenvectors[:, -12:]
    projected = V @ V.T @ layer.W_OI.double()
    assert (found.weight() - projected).norm() < 1e-2 * projected.norm()


def test_the_same_weight_as_svd(layer: Layer) -> None:
    format = format_named("rank-p50+int8")
    ours = Lord().solve(layer.W_OI, layer.statistics, format).weight()
    assert torch.equal(ours, Svd().solve(layer.W_OI, layer.statistics, format).weight())


def test_kept_rows_and_mixing_make_the_same_weight_as_two_factors(layer: Layer) -> None:
    pair = Lord().solve(layer.W_OI, layer.statistics, format_named("rank-r12"))
    rows = Lord().solve(layer.W_OI, layer.statistics, format_named("id-r12"))
    assert isinstance(pair, FactoredSolution)
    assert isinstance(rows, InterpolatedSolution)
    assert (rows.weight() - pair.weight()).norm() < 1e-2 * pair.weight().norm()
    assert rows.mixing.weight().abs().max() < 4


def test_mixing_makes_up_for_the_rounding_of_the_kept_rows(layer: Layer) -> None:
    H, format = gram(layer.X_TI), format_named("id-r32+int3-g32")
    found = Lord().solve(layer.W_OI, layer.statistics, format)
    plain = Lord().solve(layer.W_OI, layer.statistics, format_named("id-r32"))
    assert isinstance(found, InterpolatedSolution)
    assert isinstance(plain, InterpolatedSolution)
    nearest = format.values.nearest  # type: ignore[attr-defined]
    rounded = InterpolatedSolution(
        place_O=plain.place_O,
        kept=nearest(plain.kept.weight()),
        mixing=nearest(plain.mixing.weight()),
    )
    errors = [quadratic_error(each.weight() - layer.W_OI, H) for each in (found, rounded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", ["rank-r12", "id-r12"])
def test_rows_weighed_by_gradients_lower_the_second_order_loss(layer: Layer, name: str) -> None:
    G_O = torch.logspace(-2, 2, 48)
    losses = []
    for fisher in (True, False):
        found = Lord(fisher=fisher).solve(layer.W_OI, seen(layer, G_O), format_named(name))
        losses.append(
            float((G_O * row_errors(found.weight() - layer.W_OI, gram(layer.X_TI))).sum())
        )
    assert losses[0] < 0.7 * losses[1]


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    format = format_named("id-r4")
    with pytest.raises(NumericalError, match="no calibration token"):
        Lord().solve(layer.W_OI, Statistics(tokens=0, input_gram=torch.zeros(64, 64)), format)
    with pytest.raises(NumericalError, match="no Fisher"):
        Lord(fisher=True).solve(layer.W_OI, seen(layer, torch.zeros(48)), format)
    with pytest.raises(CandidateError, match="damping"):
        method_named("lord", (("damping", "-1"),))
    with pytest.raises(CandidateError, match=r"fills rank-\* and id-\*"):
        Lord().solve(layer.W_OI, layer.statistics, format_named("int4"))
