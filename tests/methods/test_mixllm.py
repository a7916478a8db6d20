"""MixLLM's choice of rows."""

from __future__ import annotations

import itertools

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.mixllm import Mixllm
from blockwright.numerics.losses import row_errors
from blockwright.registry import format_named, method_named
from blockwright.types import MixedRowsFormat, MixedRowsSolution, Statistic, Statistics
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=10, in_features=64, tokens=300)


def seen(layer: Layer, G_O: torch.Tensor) -> Statistics:
    gram = layer.statistics.need(Statistic.INPUT_GRAM)
    return Statistics(tokens=300, input_gram=gram, output_gradient=G_O)


@pytest.mark.parametrize("compensate", [False, True])
def test_no_other_choice_of_rows_has_less_predicted_loss(layer: Layer, compensate: bool) -> None:
    G_O = torch.rand(10, generator=torch.Generator().manual_seed(3)).square()
    statistics, method = seen(layer, G_O), Mixllm(compensate=compensate)
    format = format_named("mix-p30-g32")
    assert isinstance(format, MixedRowsFormat)
    solution = method.solve(layer.W_OI, statistics, format)
    H = statistics.need(Statistic.INPUT_GRAM)
    plain = "gptq" if compensate else "rtn"
    losses = {}
    for each in (format.narrow, format.wide):
        W_hat = method_named(plain).solve(layer.W_OI, statistics, each).weight()
        losses[each.name] = G_O * row_errors(W_hat - layer.W_OI, H)
    narrow, wide = losses[format.narrow.name], losses[format.wide.name]
    best = min(
        float(narrow.sum() - sum(narrow[r] - wide[r] for r in rows))
        for rows in itertools.combinations(range(10), 3)
    )
    found = float((G_O * row_errors(solution.weight() - layer.W_OI, H)).sum())
    assert found == pytest.approx(best, rel=1e-4)


def test_rows_are_filled_as_if_all_were_of_their_width(layer: Layer) -> None:
    statistics = seen(layer, torch.ones(10))
    format = format_named("mix-p50-g64")
    assert isinstance(format, MixedRowsFormat)
    solution = Mixllm(compensate=False, search="mse").solve(layer.W_OI, statistics, format)
    assert isinstance(solution, MixedRowsSolution)
    nearest = format.narrow.nearest(layer.W_OI).weight()
    assert torch.equal(solution.weight()[~solution.is_wide_O], nearest[~solution.is_wide_O])


def test_sites_that_nothing_reached_and_other_formats_are_refused(layer: Layer) -> None:
    format = format_named("mix-p30-g32")
    with pytest.raises(NumericalError, match="no loss gradient reached this site"):
        Mixllm().solve(layer.W_OI, seen(layer, torch.zeros(10)), format)
    with pytest.raises(NumericalError, match="gradients are not finite"):
        Mixllm().solve(layer.W_OI, seen(layer, torch.full((10,), torch.nan)), format)
    with pytest.raises(NumericalError, match="no calibration token"):
        Mixllm().solve(layer.W_OI, Statistics(tokens=0), format)
    with pytest.raises(CandidateError, match="mixllm cannot fill int4-g64"):
        Mixllm().solve(layer.W_OI, layer.statistics, format_named("int4-g64"))
    with pytest.raises(CandidateError, match="mixllm@damping: got 0"):
        Mixllm(damping=0)
