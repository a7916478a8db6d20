"""Laws that every registered method obeys with every kind of format it fills."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from blockwright.errors import StatisticMissingError
from blockwright.formats import FormatLinear
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import (
    format_class,
    format_named,
    format_stems,
    method_class,
    method_named,
    method_names,
    resolve,
)
from blockwright.types import (
    Candidate,
    GridFormat,
    GridSolution,
    LinearMethod,
    Statistic,
    Statistics,
)
from tests.layers import Layer, outlier_layer

GRIDS = ("int2-g32", "int3-g64-sym", "int4-g128", "int4-row", "int6-g32-sym", "int8")
"""Every kind of grid: few and many bits, symmetric or not, groups or rows."""
OPTIONS: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "rtn": ((), (("search", "mse"),), (("search", "gram"),)),
    "gptq": ((), (("act_order", "false"), ("search", "mse")), (("damping", "0.1"),)),
}
"""Hyperparameters to try; a method that is not here is tried with its defaults."""

METHODS = [
    pytest.param(name, options, id=f"{name}{''.join(f'@{k}={v}' for k, v in options)}")
    for name in method_names()
    for options in OPTIONS.get(name, ((),))
]
every_method = pytest.mark.parametrize(("name", "options"), METHODS)
every_format = pytest.mark.parametrize("format_name", GRIDS)
Options = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(3, out_features=48, in_features=256, tokens=400)


def grid_format(method: LinearMethod, name: str) -> GridFormat:
    """The format, or a skip where the method fills other kinds."""
    format = format_named(name)
    if not isinstance(format, method.fills):
        pytest.skip(f"does not fill {name}")
    assert isinstance(format, GridFormat)
    return format


def solved(method: LinearMethod, W: Tensor, statistics: Statistics, format: GridFormat) -> Tensor:
    """Codes, after a look at the kind of solution."""
    solution = method.solve(W, statistics, format)
    assert isinstance(solution, GridSolution)
    return solution.codes_OI


def packed(method: LinearMethod, layer: Layer, format: GridFormat) -> FormatLinear:
    solution = method.solve(layer.W_OI, layer.statistics, format)
    assert isinstance(solution, GridSolution)
    module = format.pack(solution, None, torch.bfloat16)
    assert isinstance(module, FormatLinear)
    return module


def test_the_formats_tried_are_of_every_registered_grid_format() -> None:
    stems = {stem for stem in format_stems() if issubclass(format_class(stem), GridFormat)}
    assert stems == {type(format_named(name)).__module__.rpartition(".")[2] for name in GRIDS}


@pytest.mark.parametrize("name", method_names())
def test_declares_what_it_is(name: str) -> None:
    cls = method_class(name)
    assert cls.family == method_names()[name]
    assert cls.paper
    assert cls.version >= 1
    assert method_named(name).needs <= set(Statistic)
    assert (cls.__module__.rpartition(".")[2]) == name


@every_method
def test_candidate_text_and_method_say_the_same(name: str, options: Options) -> None:
    method = method_named(name, options)
    texts = {
        item.name: str(getattr(method, item.name)).lower()
        for item in fields(method)  # type: ignore[arg-type]
    }
    text = f"int4-g64:{name}@" + ",".join(f"{key}={texts[key]}" for key in sorted(texts))
    candidate = Candidate.parse(text)
    assert str(candidate) == text
    assert resolve(candidate)[1] == (method,)
    assert hash(method) == hash(resolve(candidate)[1][0])


@every_method
@every_format
def test_inputs_are_unchanged(name: str, options: Options, format_name: str, layer: Layer) -> None:
    method = method_named(name, options)
    W, statistics = layer.W_OI.clone(), layer.statistics
    solved(method, W, statistics, grid_format(method, format_name))
    assert torch.equal(W, layer.W_OI)
    for statistic in Statistic:
        before = layer.statistics.need(statistic)
        assert torch.equal(statistics.need(statistic), before), statistic


@every_method
@every_format
def test_same_inputs_give_the_same_bits(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = grid_format(method, format_name)
    first = packed(method, layer, format).state_dict()
    torch.manual_seed(12345)
    second = packed(method, layer, format).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_method
def test_only_declared_statistics_are_used(name: str, options: Options, layer: Layer) -> None:
    method = method_named(name, options)
    format = grid_format(method, "int4-g128")
    declared = layer.statistics.only(method.needs)
    codes = solved(method, layer.W_OI, declared, format)
    assert torch.equal(codes, solved(method, layer.W_OI, layer.statistics, format))
    for statistic in method.needs:
        with pytest.raises(StatisticMissingError, match=statistic.value):
            solved(method, layer.W_OI, declared.only(method.needs - {statistic}), format)


@every_method
@every_format
def test_output_is_finite_of_the_right_shape_and_dtype(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = grid_format(method, format_name)
    solution = method.solve(layer.W_OI, layer.statistics, format)
    assert isinstance(solution, GridSolution)
    assert solution.codes_OI.dtype == torch.uint8
    assert solution.codes_OI.shape == layer.W_OI.shape
    module = packed(method, layer, format)
    W_hat = module.dequantize()
    assert W_hat.dtype == torch.float32
    assert W_hat.shape == layer.W_OI.shape
    assert torch.isfinite(W_hat).all()
    y = module(layer.X_TI[:3].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.shape == (3, len(layer.W_OI))
    assert torch.isfinite(y).all()


@every_method
@every_format
def test_what_is_stored_is_what_was_solved(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = grid_format(method, format_name)
    solution = method.solve(layer.W_OI, layer.statistics, format)
    assert isinstance(solution, GridSolution)
    W_hat = solution.grid.decode(solution.codes_OI, slice(None))
    assert torch.equal(packed(method, layer, format).dequantize(), W_hat)


@every_method
@every_format
def test_weights_on_the_grid_are_recovered_exactly(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = grid_format(method, format_name)
    grid = format.fit_grid(layer.W_OI)
    W = grid.decode(grid.encode(layer.W_OI, slice(None)), slice(None))
    solution = method.solve(W, layer.statistics, format)
    assert isinstance(solution, GridSolution)
    assert torch.equal(solution.grid.decode(solution.codes_OI, slice(None)), W)


@every_method
@pytest.mark.parametrize("kind", ["g32", "g64-sym", "row"])
def test_more_bits_never_raise_the_error(
    name: str, options: Options, kind: str, layer: Layer
) -> None:
    method = method_named(name, options)
    errors = []
    for bits in range(2, 9):
        module = packed(method, layer, grid_format(method, f"int{bits}-{kind}"))
        D = module.dequantize() - layer.W_OI
        errors.append(quadratic_error(D, layer.statistics.need(Statistic.INPUT_GRAM)))
    assert errors == sorted(errors, reverse=True)


@every_method
@every_format
def test_saved_bytes_are_the_declared_bytes_and_load_to_the_same_output(
    name: str, options: Options, format_name: str, layer: Layer, tmp_path: Path
) -> None:
    method = method_named(name, options)
    format = grid_format(method, format_name)
    module = packed(method, layer, format)
    shape = (layer.W_OI.shape[0], layer.W_OI.shape[1])
    stored = module.stored_tensors()
    assert sum(t.numel() * t.element_size() for t in stored.values()) == format.stored_bytes(shape)
    safetensors.torch.save_file(stored, tmp_path / "site.safetensors")

    loaded = (
        type(format)
        .from_spec(format.spec())
        .empty(shape, bias=False, dtype=torch.bfloat16, device="cpu")
    )
    assert isinstance(loaded, FormatLinear)
    loaded.load_state_dict(safetensors.torch.load_file(tmp_path / "site.safetensors"))
    assert torch.equal(loaded.dequantize(), module.dequantize())
    x = layer.X_TI[:3].bfloat16()
    assert torch.equal(loaded(x), module(x))
