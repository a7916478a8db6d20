"""Cur: rows of the weight itself, and the best mixing."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.methods.lowrank.cur import Cur
from blockwright.registry import format_named, method_named
from blockwright.types import InterpolatedSolution
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=48, in_features=64, tokens=400)


def test_kept_outputs_are_exact(layer: Layer) -> None:
    W = layer.W_OI.bfloat16().float()
    found = Cur().solve(W, layer.statistics, format_named("id-r12"))
    rows = (found.weight() == W).all(1)
    assert int(rows.sum()) == 12
    kept = torch.argsort(found.place_O)[:12]
    assert torch.equal(found.kept.weight(), W[kept])


def test_the_others_are_predicted_by_least_squares(layer: Layer) -> None:
    found = Cur(damping=0).solve(layer.W_OI, layer.statistics, format_named("id-r12"))
    assert isinstance(found, InterpolatedSolution)
    order = torch.argsort(found.place_O)
    Y = (layer.X_TI @ layer.W_OI.T).double()
    best = torch.linalg.lstsq(Y[:, order[:12]], Y[:, order[12:]]).solution.T
    torch.testing.assert_close(found.mixing.weight().double(), best, rtol=1e-2, atol=2e-3)


def test_options_that_make_no_sense_are_refused(layer: Layer) -> None:
    for option, value in (("metric", "fisher"), ("damping", "-1.0")):
        with pytest.raises(CandidateError, match=option):
            method_named("cur", ((option, value),))
    with pytest.raises(CandidateError, match=r"fills id-\*"):
        Cur().solve(layer.W_OI, layer.statistics, format_named("rank-r2"))
