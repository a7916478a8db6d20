"""The learned methods: their equations at the start, their guards, their bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.adaround import AdaRound
from blockwright.methods.quantize.cbq import Cbq
from blockwright.methods.quantize.discquant import DiscQuant
from blockwright.methods.quantize.efficientqat import EfficientQat
from blockwright.methods.quantize.flexround import FlexRound
from blockwright.methods.quantize.lrq import Lrq
from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import fit_range
from blockwright.registry import format_named, method_named
from blockwright.tuning import DividedRounding, division_rate
from blockwright.types import GridSolution, LinearMethod, Statistics
from tests.layers import outlier_layer

LEARNED = (FlexRound, Lrq, AdaRound, EfficientQat, DiscQuant, Cbq)
LAYER = outlier_layer(0, 24, 64, 400)
every_method = pytest.mark.parametrize("method", LEARNED)


def solution(method: LinearMethod, W_OI: Tensor, format: str = "int3-g32") -> GridSolution:
    found = method.solve(W_OI, LAYER.statistics, format_named(format))
    assert isinstance(found, GridSolution)
    return found


@every_method
def test_rows_of_zeros_stay(method: type[LinearMethod]) -> None:
    W_OI = LAYER.W_OI.clone()
    W_OI[3] = 0
    found = solution(method(steps=10), W_OI).weight()  # type: ignore[call-arg]
    assert torch.equal(found[3], torch.zeros(64))


@every_method
def test_a_weight_that_is_not_finite_is_refused(method: type[LinearMethod]) -> None:
    W_OI = LAYER.W_OI.clone()
    W_OI[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        solution(method(), W_OI)


@every_method
def test_without_tokens_there_is_no_solution(method: type[LinearMethod]) -> None:
    statistics = Statistics(tokens=0, input_gram=torch.zeros(64, 64))
    with pytest.raises(NumericalError, match="no calibration token"):
        method().solve(LAYER.W_OI, statistics, format_named("int3-g32"))


@every_method
def test_impossible_options_are_refused(method: type[LinearMethod]) -> None:
    name = method.__module__.rpartition(".")[2]
    with pytest.raises(CandidateError, match=f"option {name}@steps: got -1"):
        method_named(name, (("steps", "-1"),))


@pytest.mark.parametrize("method", [AdaRound, DiscQuant])
def test_no_weight_moves_beyond_its_two_neighbours(method: type[LinearMethod]) -> None:
    found = solution(method(steps=60), LAYER.W_OI)  # type: ignore[call-arg]
    assert isinstance(found.grid, AffineGrid)
    moved = (found.weight() - LAYER.W_OI).view(24, 2, 32).abs() / found.grid.scale[..., None]
    place = LAYER.W_OI.view(24, 2, 32) / found.grid.scale[..., None]
    place += found.grid.zero_point[..., None]
    inside = (place > 0) & (place < 7)
    assert (moved[inside] <= 1 + 1e-4).all()


def test_flexround_moves_large_weights_by_several_steps() -> None:
    found = solution(FlexRound(), LAYER.W_OI, "int4-g32")
    nearest = solution(FlexRound(steps=0), LAYER.W_OI, "int4-g32")
    steps = (found.codes_OI.int() - nearest.codes_OI.int()).abs()
    assert steps.max() > 1


def test_division_is_the_papers() -> None:
    """W_hat = s1 (clip(round(W / (s1 S2 s3)) + z, 0, Q) - z), and d u / d log S2 = -u."""
    random = torch.Generator().manual_seed(0)
    grid = AffineGrid(*fit_range(LAYER.W_OI.view(24, 2, 32), 3, False), 8, 32)
    log_factor = (0.2 * torch.randn(24, 64, generator=random)).requires_grad_()
    rounding = DividedRounding(LAYER.W_OI, grid, lambda: log_factor)
    s1, z = (t.repeat_interleave(32, 1) for t in (grid.scale, grid.zero_point))
    u = LAYER.W_OI / (s1 * log_factor.detach().exp())
    code = (u.round() + z).clamp(0, 7)
    torch.testing.assert_close(rounding.weight().detach(), s1 * (code - z))
    assert torch.equal(rounding.codes().float(), code)
    rounding.weight().sum().backward()
    inside = (u.round() + z >= 0) & (u.round() + z <= 7)
    assert log_factor.grad is not None
    torch.testing.assert_close(log_factor.grad, torch.where(inside, -u * s1, 0.0))


def test_rates_of_division_fall_with_the_levels() -> None:
    assert division_rate(4) == pytest.approx(0.01)
    assert division_rate(16) == pytest.approx(0.00125)


@pytest.mark.parametrize(("strength", "cut"), [(1e3, False), (1e-6, True)])
def test_cbq_cuts_off_only_where_that_helps(strength: float, cut: bool) -> None:
    """An outlying weight whose input is strong stays."""
    W_OI = LAYER.W_OI.clone()
    W_OI[0, 0] = 3.0
    gram = torch.eye(64)
    gram[0, 0] = strength
    statistics = Statistics(tokens=9, input_gram=gram)
    found = Cbq(steps=0).solve(W_OI, statistics, format_named("int4-row")).weight()
    assert (found[0, 0] < 2) == cut
