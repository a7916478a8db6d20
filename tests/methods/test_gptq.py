"""GPTQ against its derivation: brute elimination, closed forms, and rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import Search
from blockwright.methods.quantize.gptq import Gptq
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named, method_named
from blockwright.types import GridFormat, Solution, Statistics
from tests.layers import Layer, gram, outlier_layer, synth_layer
from tests.methods.column_loop import column_loop


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=40, in_features=320, tokens=600)


def grid_format(name: str) -> GridFormat:
    format = format_named(name)
    assert isinstance(format, GridFormat)
    return format


def decoded(solution: Solution) -> Tensor:
    return solution.weight()


def gram_only(H: Tensor, tokens: int = 1000) -> Statistics:
    return Statistics(tokens=tokens, input_gram=H)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("search", ["none", "gram"])
@pytest.mark.parametrize("format", ["int2-g32", "int3-g64", "int4-g64-sym", "int4-row", "int8"])
def test_agrees_with_the_plain_column_loop(
    layer: Layer, format: str, search: Search, act_order: bool
) -> None:
    fmt, statistics = grid_format(format), layer.statistics
    H = statistics.input_gram
    assert H is not None
    fast = Gptq(act_order=act_order, search=search).solve(layer.W_OI, statistics, fmt)
    plain = column_loop(
        layer.W_OI, H, fmt, damping=0.01, act_order=act_order, search=search == "gram"
    )
    same = (fast.codes_OI == plain.codes_OI).float().mean().item()
    assert (
        same >= 0.99
    )  # a tie that flips changes what follows in its row; the claim has the number
    losses = [quadratic_error(decoded(each) - layer.W_OI, H) for each in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_second_column_makes_up_for_the_first_in_closed_form() -> None:
    random = torch.Generator().manual_seed(0)
    W, H = torch.randn(50, 2, generator=random), torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    fmt = grid_format("int3-row")
    grid = fmt.fit_grid(W)
    codes = Gptq(damping=1e-7).solve(W, gram_only(H), fmt).codes_OI
    first = grid.encode(W[:, :1], slice(0, 1))
    error = W[:, :1] - grid.decode(first, slice(0, 1))
    second = grid.encode(W[:, 1:] + error * 0.9, slice(1, 2))  # argmin of d H d^T over d_2
    assert torch.equal(codes, torch.cat([first, second], dim=1))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("format", ["int3-g32", "int4-row"])
def test_columns_of_inputs_that_never_fired_are_rounded_to_nearest(
    layer: Layer, format: str, act_order: bool
) -> None:
    dead = torch.tensor([0, 63, 64, 200, 319])
    X = layer.X_TI.clone()
    X[:, dead] = 0
    fmt = grid_format(format)
    solution = Gptq(act_order=act_order).solve(layer.W_OI, gram_only(gram(X)), fmt)
    nearest = solution.grid.encode(layer.W_OI, slice(None))
    assert torch.equal(solution.codes_OI[:, dead], nearest[:, dead])
    assert not torch.equal(solution.codes_OI, nearest)


def test_the_gram_may_be_scaled_by_anything(layer: Layer) -> None:
    H, fmt = gram(layer.X_TI), grid_format("int3-g64")
    codes = [Gptq().solve(layer.W_OI, gram_only(H * k), fmt).codes_OI for k in (1, 2**40, 2**-40)]
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_fewer_tokens_than_inputs_still_lower_the_error_on_them(layer: Layer, tokens: int) -> None:
    H, fmt = gram(layer.X_TI[:tokens]), grid_format("int3-g64")
    statistics = gram_only(H, tokens)
    errors = [
        quadratic_error(decoded(method.solve(layer.W_OI, statistics, fmt)) - layer.W_OI, H)
        for method in (Gptq(), Rtn())
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("act_order", [True, False])
def test_solving_formats_together_gives_the_same_bits(layer: Layer, act_order: bool) -> None:
    method, statistics = Gptq(act_order=act_order), layer.statistics
    formats = [grid_format(name) for name in ("int2-g32", "int4-g64-sym", "int8")]
    together = method.solve_each(layer.W_OI, statistics, formats)
    for fmt, solution in zip(formats, together, strict=True):
        alone = method.solve(layer.W_OI, statistics, fmt)
        assert torch.equal(solution.codes_OI, alone.codes_OI)
        assert torch.equal(decoded(solution), decoded(alone))


def test_searching_ranges_by_the_gram_lowers_the_held_out_error() -> None:
    layer, fmt = synth_layer(0, features=128, tokens=1000), grid_format("int3-g64")
    plain, searched = (
        layer.heldout_error(decoded(method.solve(layer.W_OI, layer.statistics, fmt)))
        for method in (Gptq(), Gptq(search="gram"))
    )
    assert searched < plain


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        (Statistics(tokens=0, input_gram=torch.zeros(64, 64)), "no calibration token"),
        (gram_only(torch.full((64, 64), float("nan"))), "Gram holds NaN or infinity"),
        (gram_only(torch.eye(64) + 1e4 * torch.eye(64).flip(0)), "not positive definite"),
    ],
)
def test_what_cannot_be_solved_says_why(statistics: Statistics, reason: str) -> None:
    with pytest.raises(NumericalError, match=reason):
        Gptq().solve(torch.randn(4, 64), statistics, grid_format("int4-g64"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(layer: Layer, value: float) -> None:
    W = layer.W_OI.clone()
    W[3, 5] = value
    with pytest.raises(NumericalError, match="weight holds NaN or infinity"):
        Gptq().solve(W, layer.statistics, grid_format("int4-g64"))


@pytest.mark.parametrize(
    ("option", "text"),
    [("damping", "0"), ("damping", "-1"), ("damping", "nan"), ("search", "x"), ("order", "1")],
)
def test_options_out_of_range_are_refused(option: str, text: str) -> None:
    with pytest.raises(CandidateError, match=option):
        method_named("gptq", ((option, text),))
