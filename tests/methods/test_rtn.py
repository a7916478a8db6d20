"""Round to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import Search
from blockwright.methods.quantize.rtn import Rtn
from blockwright.registry import format_named, method_named
from blockwright.types import GridFormat, GridSolution, Statistic, Statistics
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=24, in_features=128, tokens=300)


def rounded(W: Tensor, method: Rtn, statistics: Statistics, format: str) -> Tensor:
    """W_hat."""
    return method.solve(W, statistics, format_named(format)).weight()


@pytest.mark.parametrize("format", ["int2-g32", "int3-g64-sym", "int4-row", "int8"])
def test_no_other_code_of_the_grid_is_nearer(layer: Layer, format: str) -> None:
    fmt = format_named(format)
    assert isinstance(fmt, GridFormat)
    solution = Rtn().solve(layer.W_OI, Statistics(tokens=0), fmt)
    assert isinstance(solution, GridSolution)
    levels = 1 << int(format[3])
    every = torch.stack(
        [
            solution.grid.decode(torch.full_like(solution.codes_OI, code), slice(None))
            for code in range(levels)
        ]
    )
    least = (every - layer.W_OI).abs().amin(0)
    W_hat = solution.grid.decode(solution.codes_OI, slice(None))
    torch.testing.assert_close((W_hat - layer.W_OI).abs(), least, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("format", ["int2-g32", "int3-g64-sym", "int4-row"])
def test_searched_ranges_are_never_worse_by_what_they_search_for(layer: Layer, format: str) -> None:
    W, statistics = layer.W_OI, layer.statistics
    h = statistics.need(Statistic.INPUT_GRAM).diagonal()
    squared = {
        search: (rounded(W, Rtn(search=search), statistics, format) - W).square()
        for search in ("none", "mse", "gram")
    }
    tolerance = 1 + 1e-6
    assert (squared["mse"].sum(1) <= squared["none"].sum(1) * tolerance).all()
    assert ((squared["gram"] @ h) <= (squared["none"] @ h) * tolerance).all()
    assert squared["mse"].sum() < squared["none"].sum()
    assert (squared["gram"] @ h).sum() < (squared["mse"] @ h).sum()


@pytest.mark.parametrize(
    ("search", "needs"), [("none", set()), ("mse", set()), ("gram", {Statistic.INPUT_GRAM})]
)
def test_needs_the_gram_only_to_search_with_it(search: Search, needs: set[Statistic]) -> None:
    assert Rtn(search=search).needs == needs


def test_unknown_search_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(CandidateError, match=r"rtn@search: got 'best', allowed: none, mse, gram"):
        method_named("rtn", (("search", "best"),))


def test_search_by_a_gram_of_no_tokens_is_refused(layer: Layer) -> None:
    with pytest.raises(NumericalError, match="no calibration token"):
        Rtn(search="gram").solve(layer.W_OI, Statistics(tokens=0), format_named("int4-g64"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(layer: Layer, value: float) -> None:
    W = layer.W_OI.clone()
    W[3, 5] = value
    with pytest.raises(NumericalError, match="weight holds NaN or infinity"):
        Rtn().solve(W, Statistics(tokens=0), format_named("int4-g64"))


def test_formats_without_a_grid_are_refused(layer: Layer) -> None:
    with pytest.raises(CandidateError, match="rtn cannot fill keep"):
        Rtn().solve(layer.W_OI, Statistics(tokens=0), format_named("keep"))
