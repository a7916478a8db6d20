"""Magnitude: counts, values, optimality for equal inputs."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.magnitude import Magnitude
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.registry import format_named
from blockwright.types import Statistics
from tests.layers import gram, synth_layer

NOTHING = Statistics(tokens=0)


@pytest.mark.parametrize(
    ("format", "kept"), [("sparse50", 32), ("sparse1of4", 16), ("sparse80", 13)]
)
def test_keeps_exactly_so_many_values_as_they_were(format: str, kept: int) -> None:
    W = synth_layer(0, features=64, tokens=10).W_OI
    solution = Magnitude().solve(W, NOTHING, format_named(format))
    assert (solution.mask_OI.sum(1) == kept).all()
    expected = torch.where(solution.mask_OI, W.bfloat16().float(), 0)
    assert torch.equal(solution.weight(), expected)


def test_equal_uncorrelated_inputs_allow_no_better_mask() -> None:
    W = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    found = Magnitude().solve(W, NOTHING, format_named("sparse50")).mask_OI
    losses = row_errors(W * ~found, torch.eye(8))
    for row, loss in zip(W, losses, strict=True):
        best = min(float(row[list(zeroed)].square().sum()) for zeroed in combinations(range(8), 4))
        assert float(loss) == pytest.approx(best, rel=1e-5)


def test_the_refit_is_optional_and_helps() -> None:
    layer, format = synth_layer(0, features=64, tokens=500), format_named("sparse2of4")
    H = gram(layer.X_TI)
    plain, refitted = (
        Magnitude(refit=refit).solve(layer.W_OI, layer.statistics, format).weight()
        for refit in (False, True)
    )
    assert quadratic_error(refitted - layer.W_OI, H) < 0.5 * quadratic_error(plain - layer.W_OI, H)


def test_what_cannot_be_solved_says_why() -> None:
    with pytest.raises(NumericalError, match="weight holds NaN"):
        Magnitude().solve(torch.full((2, 4), float("nan")), NOTHING, format_named("sparse2of4"))
    with pytest.raises(NumericalError, match="no calibration token"):
        Magnitude(refit=True).solve(torch.ones(2, 4), NOTHING, format_named("sparse2of4"))
    with pytest.raises(CandidateError, match="sparse formats"):
        Magnitude().solve(torch.ones(2, 4), NOTHING, format_named("rank-r1"))
