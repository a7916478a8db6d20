"""Welore: ranks by a threshold, whole weights where nothing is gained."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.methods.lowrank.welore import Welore
from blockwright.registry import format_named, method_named
from blockwright.types import DenseSolution, FactoredSolution, Statistics
from tests.layers import Layer, outlier_layer

NOTHING = Statistics(tokens=0)


def of_spectrum(sigma: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(64, 64, generator=random))[0] for _ in range(2))
    W: torch.Tensor = (U * sigma) @ V.T
    return W


def test_singular_values_that_reach_the_threshold_are_kept() -> None:
    sigma = torch.cat([torch.linspace(1, 0.6, 10), torch.linspace(0.4, 0, 54)])
    W = of_spectrum(sigma)
    found = Welore(metric="weight").solve(W, NOTHING, format_named("ranks-t500"))
    assert isinstance(found, FactoredSolution)
    assert found.right.weight().shape == (10, 64)
    U, S, V = torch.linalg.svd(W)
    best = (U[:, :10] * S[:10]) @ V[:10]
    assert (found.weight() - best).norm() < 1e-2 * best.norm()


@pytest.mark.parametrize("values", ["", "+int8"])
def test_a_flat_spectrum_stays_whole(values: str) -> None:
    W = of_spectrum(torch.linspace(1, 0.5, 64))
    format = format_named(f"ranks-t200{values}")
    found = Welore(metric="weight").solve(W, NOTHING, format)
    assert not isinstance(found, FactoredSolution)
    assert (found.weight() - W).norm() < 1e-2 * W.norm()
    assert isinstance(found, DenseSolution) == (values == "")


def test_factors_are_the_best_of_their_rank_on_the_inputs() -> None:
    layer: Layer = outlier_layer(0, out_features=48, in_features=64, tokens=400)
    errors = [
        layer.heldout_error(
            Welore(metric=metric)
            .solve(layer.W_OI, layer.statistics, format_named("ranks-t500"))
            .weight()
        )
        for metric in ("gram", "weight")
    ]
    assert 0 < errors[0] < 0.7 * errors[1]


def test_a_quantile_scales_by_another_value_than_the_largest() -> None:
    W = of_spectrum(torch.cat([torch.tensor([50.0]), torch.linspace(1, 0, 63)]))
    ranks = [
        len(found.right.weight())
        for quantile in (1.0, 0.9)
        for found in [
            Welore(metric="weight", quantile=quantile).solve(W, NOTHING, format_named("ranks-t700"))
        ]
        if isinstance(found, FactoredSolution)
    ]
    assert ranks[0] == 1
    assert ranks[1] > 10


def test_options_that_make_no_sense_are_refused() -> None:
    for option, value in (("metric", "fisher"), ("quantile", "0.0"), ("damping", "-1.0")):
        with pytest.raises(CandidateError, match=option):
            method_named("welore", ((option, value),))
    with pytest.raises(CandidateError, match="fills ranks-t"):
        Welore(metric="weight").solve(torch.eye(8), NOTHING, format_named("rank-r2"))
