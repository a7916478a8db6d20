"""Laws that every registered method obeys with every kind of format it fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError, StatisticMissingError
from blockwright.formats import FormatLinear, format_from_spec
from blockwright.numerics.losses import quadratic_error, relative_error, row_errors
from blockwright.registry import (
    format_class,
    format_named,
    format_stems,
    fusing_named,
    is_scaled,
    method_class,
    method_named,
    method_names,
    resolve,
    scaling_named,
    width_named,
)
from blockwright.tuning import Example
from blockwright.types import (
    Candidate,
    FusedBlock,
    GridFormat,
    GridSolution,
    LinearMethod,
    Method,
    NeighbourBlocks,
    PackedFormat,
    ScalingMethod,
    Solution,
    Statistic,
    Statistics,
)
from tests.conformance.method_cases import (
    FORMATS,
    FUSING,
    GRIDS,
    IDEMPOTENT,
    LADDERS,
    LINEAR,
    METHODS,
    ROUNDING,
    SCALING,
    WIDTH,
    Options,
    any_method,
    fillings,
)
from tests.layers import Layer, outlier_layer

every_method = pytest.mark.parametrize(("name", "options"), METHODS)
every_filling = pytest.mark.parametrize(("name", "options", "format_name"), fillings(FORMATS))


@cache
def made_layer(in_features: int = 256) -> Layer:
    """Its weights are bfloat16 numbers, as most checkpoints' are."""
    layer = outlier_layer(3, out_features=48, in_features=in_features, tokens=400)
    return replace(layer, W_OI=layer.W_OI.bfloat16().float())


@pytest.fixture
def layer() -> Layer:
    return made_layer()


@pytest.fixture
def short_layer() -> Layer:
    """For laws that take many solutions."""
    return made_layer(128)


@cache
def solution_of(name: str, options: Options, format_name: str) -> Solution:
    """What the method makes of the layer: solved once for all laws."""
    layer = made_layer()
    return method_named(name, options).solve(
        layer.W_OI, layer.statistics, filled_format(format_name)
    )


def module_of(name: str, options: Options, format_name: str) -> FormatLinear:
    """The solution packed."""
    format = filled_format(format_name)
    module = format.pack(solution_of(name, options, format_name), None, torch.bfloat16)
    assert isinstance(module, FormatLinear)
    return module


def filled_format(name: str) -> PackedFormat:
    format = format_named(name)
    assert isinstance(format, PackedFormat)
    return format


def first_format(method: Method) -> PackedFormat:
    """A format that the method fills."""
    fitting = (format_named(name) for name in FORMATS)
    format = next(each for each in fitting if isinstance(each, method.fills))
    assert isinstance(format, PackedFormat)
    return format


def solved(method: LinearMethod, W: Tensor, statistics: Statistics, format: PackedFormat) -> Tensor:
    return method.solve(W, statistics, format).weight()


def packed(method: LinearMethod, layer: Layer, format: PackedFormat) -> FormatLinear:
    module = format.pack(method.solve(layer.W_OI, layer.statistics, format), None, torch.bfloat16)
    assert isinstance(module, FormatLinear)
    return module


def error(layer: Layer, solution: Solution) -> float:
    """tr(D H D^T) on the calibration inputs."""
    return quadratic_error(
        solution.weight() - layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM)
    )


def test_the_formats_tried_are_of_every_registered_packed_format() -> None:
    stems = {stem for stem in format_stems() if issubclass(format_class(stem), PackedFormat)}
    assert stems == {type(format_named(name)).__module__.rpartition(".")[2] for name in FORMATS}


@pytest.mark.parametrize("name", [*LINEAR, *SCALING])
def test_fills_a_format_that_is_tried(name: str) -> None:
    assert first_format(any_method(name))


@pytest.mark.parametrize("name", method_names())
def test_declares_what_it_is(name: str) -> None:
    cls = method_class(name)
    assert cls.family == method_names()[name]
    assert cls.paper
    assert cls.version >= 1
    assert any_method(name).needs <= set(Statistic)
    assert (cls.__module__.rpartition(".")[2]) == name


@every_method
def test_candidate_text_and_method_say_the_same(name: str, options: Options) -> None:
    method = method_named(name, options)
    texts = {
        item.name: str(getattr(method, item.name)).lower()
        for item in fields(method)  # type: ignore[arg-type]
    }
    chosen = ",".join(f"{key}={texts[key]}" for key in sorted(texts))
    text = f"{first_format(method).name}:{name}" + (f"@{chosen}" if chosen else "")
    candidate = Candidate.parse(text)
    assert str(candidate) == text
    assert resolve(candidate)[1] == (method,)
    assert hash(method) == hash(resolve(candidate)[1][0])


@every_method
def test_inputs_are_unchanged(name: str, options: Options, layer: Layer) -> None:
    method = method_named(name, options)
    W, statistics = layer.W_OI.clone(), layer.statistics
    solved(method, W, statistics, first_format(method))
    assert torch.equal(W, layer.W_OI)
    for statistic in Statistic:
        before = layer.statistics.need(statistic)
        assert torch.equal(statistics.need(statistic), before), statistic


@every_filling
def test_same_inputs_give_the_same_bits(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    first = module_of(name, options, format_name).state_dict()
    torch.manual_seed(12345)
    second = packed(method_named(name, options), layer, filled_format(format_name)).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_method
def test_only_declared_statistics_are_used(name: str, options: Options, layer: Layer) -> None:
    method = method_named(name, options)
    format = first_format(method)
    declared = layer.statistics.only(method.needs)
    found = solved(method, layer.W_OI, declared, format)
    assert torch.equal(found, solved(method, layer.W_OI, layer.statistics, format))
    for statistic in method.needs:
        with pytest.raises(StatisticMissingError, match=statistic.value):
            solved(method, layer.W_OI, declared.only(method.needs - {statistic}), format)


@every_filling
def test_output_is_finite_of_the_right_shape_and_dtype(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    module = module_of(name, options, format_name)
    W_hat = module.dequantize()
    assert W_hat.dtype == torch.float32
    assert W_hat.shape == layer.W_OI.shape
    assert torch.isfinite(W_hat).all()
    y = module(layer.X_TI[:3].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.shape == (3, len(layer.W_OI))
    assert torch.isfinite(y).all()


@every_filling
def test_what_is_stored_is_what_was_solved_and_errs_as_the_method_says(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    solution = solution_of(name, options, format_name)
    W_hat = module_of(name, options, format_name).dequantize()
    assert torch.equal(W_hat, solution.weight())
    said = solution.errors_O if isinstance(solution, GridSolution) else None
    if said is not None:
        measured = row_errors(W_hat - layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM))
        torch.testing.assert_close(said, measured, rtol=1e-3, atol=1e-6 * float(measured.max()))


@pytest.mark.parametrize(("name", "options", "format_name"), fillings(GRIDS))
def test_weights_on_the_grid_are_recovered_exactly(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = filled_format(format_name)
    assert isinstance(format, GridFormat)
    grid = format.fit_grid(layer.W_OI)
    W = grid.decode(grid.encode(layer.W_OI, slice(None)), slice(None))
    solution = method.solve(W, layer.statistics, format)
    assert isinstance(solution, GridSolution)
    assert torch.equal(solution.weight(), W)


@every_filling
def test_zero_rows_and_groups_of_one_value_stay_what_they_are(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    """Beside other groups: nothing but their own scale may tell them from the rest."""
    W = layer.W_OI.clone()
    W[3] = 0
    W[4] = 0.0625
    W[5] = -0.0625
    W[6, :128] = 0
    solution = method_named(name, options).solve(W, layer.statistics, filled_format(format_name))
    W_hat = solution.weight()
    assert torch.isfinite(W_hat).all()
    if format_name in GRIDS and name in ROUNDING:
        assert torch.equal(W_hat[3], W[3])
        assert torch.equal(W_hat[6, :128], W[6, :128]) or "row" in format_name
        of_a_scale = 2.0**-6 if format_name.endswith("-dq") else 2.0**-8
        assert ((W_hat[4:6] - W[4:6]).abs() <= of_a_scale * 0.0625).all()
    module = filled_format(format_name).pack(solution, None, torch.bfloat16)
    assert isinstance(module, FormatLinear)
    x = layer.X_TI[:3].bfloat16()
    exact = module.reference(x.float())
    rounded_inputs = 0.1 if module.kernel == "int8 x int8" else 1e-2
    assert (module(x) - exact).norm() < rounded_inputs * exact.norm()


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_makes_the_variant_unavailable(
    name: str, options: Options, value: float, layer: Layer
) -> None:
    method, W = method_named(name, options), layer.W_OI.clone()
    W[3, 5] = value
    with pytest.raises(NumericalError, match=r"finite|NaN"):
        method.solve(W, layer.statistics, first_format(method))


@pytest.mark.parametrize(("name", "options", "format_name"), fillings(IDEMPOTENT))
def test_weights_that_have_the_structure_are_recovered_to_rounding(
    name: str, options: Options, format_name: str, short_layer: Layer
) -> None:
    method = method_named(name, options)
    format = filled_format(format_name)
    W = solved(method, short_layer.W_OI, short_layer.statistics, format)
    again = solved(method, W, short_layer.statistics, format)
    few_bits = (
        "+" in format_name,
        "&" in format_name,
        format_name.startswith(("mix", "bin", "vq", "dyadic4")),
    )
    twice = any(few_bits)  # rounded to few bits, twice
    rounding = 2e-2 if twice else 1e-4
    assert (
        relative_error(again - W, W, short_layer.statistics.need(Statistic.INPUT_GRAM)) < rounding
    )


@pytest.mark.parametrize(("name", "options", "format_name"), fillings(("rank-r48",)))
def test_full_rank_recovers_the_weight_to_rounding(
    name: str, options: Options, format_name: str, layer: Layer
) -> None:
    method = method_named(name, options)
    format = filled_format(format_name)
    W_hat = solved(method, layer.W_OI, layer.statistics, format)
    assert (W_hat - layer.W_OI).norm() < 1e-2 * layer.W_OI.norm()


@pytest.mark.parametrize(("name", "options", "format_name"), fillings(LADDERS))
def test_looser_settings_never_raise_the_error(
    name: str, options: Options, format_name: str, short_layer: Layer
) -> None:
    method, ladder = method_named(name, options), LADDERS[format_name]
    formats = [filled_format(step) for step in ladder]
    solutions = method.solve_each(short_layer.W_OI, short_layer.statistics, formats)
    errors = [error(short_layer, solution) for solution in solutions]
    by_chance = 1.02 if "+" in ladder[0] else 1.0  # rounding may undo a part of what pruning did
    assert all(looser <= tighter * by_chance for tighter, looser in pairwise(errors))


@every_method
def test_solving_formats_together_gives_the_same_bits(
    name: str, options: Options, short_layer: Layer
) -> None:
    method = method_named(name, options)
    named = (format_named(each) for each in FORMATS)
    formats = [format for format in named if isinstance(format, method.fills)]
    together = method.solve_each(short_layer.W_OI, short_layer.statistics, formats)
    for format, solution in zip(formats, together, strict=True):
        alone = method.solve(short_layer.W_OI, short_layer.statistics, format)
        assert torch.equal(solution.weight(), alone.weight())


@every_filling
def test_saved_bytes_are_the_declared_bytes_and_load_to_the_same_output(
    name: str, options: Options, format_name: str, layer: Layer, tmp_path: Path
) -> None:
    format = filled_format(format_name)
    module = module_of(name, options, format_name)
    shape = (layer.W_OI.shape[0], layer.W_OI.shape[1])
    stored = module.stored_tensors()
    saved = sum(t.numel() * t.element_size() for t in stored.values())
    assert saved == module.format.stored_bytes(shape)
    assert format.least_bytes(shape) <= saved <= format.stored_bytes(shape)
    safetensors.torch.save_file(stored, tmp_path / "site.safetensors")

    stored_format = format_from_spec(module.format.spec())
    assert isinstance(stored_format, PackedFormat)
    loaded = stored_format.empty(shape, bias=False, dtype=torch.bfloat16, device="cpu")
    assert isinstance(loaded, FormatLinear)
    loaded.load_state_dict(safetensors.torch.load_file(tmp_path / "site.safetensors"))
    assert torch.equal(loaded.dequantize(), module.dequantize())
    x = layer.X_TI[:3].bfloat16()
    assert torch.equal(loaded(x), module(x))


# -- methods that scale the inputs of several linears


def chosen_scale(name: str, layer: Layer, statistics: Statistics | None = None) -> Tensor:
    method = scaling_named(name)
    weights = [layer.W_OI[:16].contiguous(), layer.W_OI[16:].contiguous()]
    return method.choose_scale(weights, statistics or layer.statistics, first_format(method))


@pytest.mark.parametrize("name", SCALING)
def test_a_scale_is_positive_finite_and_the_same_bits_again(name: str, layer: Layer) -> None:
    W, statistics = layer.W_OI.clone(), layer.statistics
    t_I = chosen_scale(name, layer, statistics)
    assert t_I.shape == (layer.W_OI.shape[1],)
    assert t_I.dtype == torch.float32
    assert torch.isfinite(t_I).all()
    assert (t_I > 0).all()
    torch.manual_seed(12345)
    assert torch.equal(chosen_scale(name, layer), t_I)
    assert torch.equal(layer.W_OI, W)
    for statistic in Statistic:
        before = layer.statistics.need(statistic)
        assert torch.equal(statistics.need(statistic), before), statistic


@pytest.mark.parametrize("name", SCALING)
def test_a_scale_is_chosen_from_declared_statistics_only(name: str, layer: Layer) -> None:
    needs = scaling_named(name).needs
    declared = layer.statistics.only(needs)
    assert torch.equal(chosen_scale(name, layer, declared), chosen_scale(name, layer))
    for statistic in needs:
        with pytest.raises(StatisticMissingError, match=statistic.value):
            chosen_scale(name, layer, declared.only(needs - {statistic}))


@pytest.mark.parametrize("name", WIDTH)
def test_channels_are_chosen_alike_from_declared_statistics_only(name: str, layer: Layer) -> None:
    method, W = width_named(name), layer.W_OI.clone()
    kept_K, W_OK = method.narrow(W, layer.statistics, 100)
    assert kept_K.shape == (100,)
    assert (kept_K.diff() > 0).all()
    assert W_OK.shape == (len(W), 100)
    assert W_OK.dtype == torch.float32
    assert torch.isfinite(W_OK).all()
    torch.manual_seed(12345)
    declared = layer.statistics.only(method.needs)
    again = method.narrow(layer.W_OI, declared, 100)
    assert torch.equal(again[0], kept_K)
    assert torch.equal(again[1], W_OK)
    assert torch.equal(W, layer.W_OI)
    for statistic in method.needs:
        with pytest.raises(StatisticMissingError, match=statistic.value):
            method.narrow(W, declared.only(method.needs - {statistic}), 100)


@pytest.mark.parametrize("name", WIDTH)
def test_a_narrower_part_takes_methods_of_its_own(name: str) -> None:
    assert resolve(Candidate.parse(f"narrow-p75:{name}"))[1] == (width_named(name),)
    for wrong in (f"int4-g32:{name}", "narrow-p75:gptq"):
        with pytest.raises(CandidateError, match="cannot fill"):
            resolve(Candidate.parse(wrong))
    with pytest.raises(CandidateError, match="narrows parts"):
        method_named(name)


def neighbours() -> NeighbourBlocks:
    """Two blocks x + W relu(x) + b of which the second stays."""
    draw = torch.Generator().manual_seed(0)
    kept, lost = (0.2 * torch.randn(12, 12, generator=draw) for _ in range(2))
    bias = torch.randn(12, generator=draw).bfloat16()

    def run(values: Mapping[str, Tensor], x: Tensor, arguments: float) -> Tensor:
        return x + arguments * (x.relu() @ values["linear"].T) + values["linear.bias"]

    inputs = [torch.randn(2, 20, 12, generator=draw) for _ in range(5)]
    whole = {"linear": kept, "linear.bias": bias.float()}
    first = [run({**whole, "linear": lost}, x, 1.0) for x in inputs]
    batches = [
        Example(inputs=x, target=run(whole, y, 1.0), arguments=1.0)
        for x, y in zip(inputs, first, strict=True)
    ]
    return NeighbourBlocks(
        kept={"linear": kept},
        lost={"linear": lost},
        vectors={"linear.bias": bias},
        run=run,
        batches=batches,
        where="here",
    )


def fused_tensors(fused: FusedBlock) -> dict[str, Tensor]:
    return {**fused.weights, **fused.vectors}


@pytest.mark.parametrize("name", FUSING)
def test_a_fused_block_is_finite_no_worse_and_the_same_bits_again(name: str) -> None:
    blocks, untouched = neighbours(), neighbours()
    fused = fusing_named(name, (("steps", "20"),)).fuse(blocks)
    assert fused.loss <= fused.start_loss
    assert fused.weights["linear"].dtype == torch.float32
    assert fused.vectors["linear.bias"].dtype == torch.bfloat16
    assert all(torch.isfinite(tensor).all() for tensor in fused_tensors(fused).values())
    torch.manual_seed(12345)
    again = fused_tensors(fusing_named(name, (("steps", "20"),)).fuse(blocks))
    assert all(torch.equal(again[key], tensor) for key, tensor in fused_tensors(fused).items())
    assert torch.equal(blocks.kept["linear"], untouched.kept["linear"])
    assert torch.equal(blocks.lost["linear"], untouched.lost["linear"])
    assert torch.equal(blocks.vectors["linear.bias"], untouched.vectors["linear.bias"])


@pytest.mark.parametrize("name", FUSING)
def test_a_fused_block_takes_methods_of_its_own(name: str) -> None:
    assert resolve(Candidate.parse(f"fuse:{name}"))[1] == (fusing_named(name),)
    _, chain = resolve(Candidate.parse(f"fuse-next+int4-g32:{name}>gptq@damping=0.1"))
    assert chain == (fusing_named(name), method_named("gptq", (("damping", "0.1"),)))
    for wrong in (f"int4-g32:{name}", "fuse:gptq", f"narrow-p75:{name}"):
        with pytest.raises(CandidateError, match="cannot fill"):
            resolve(Candidate.parse(wrong))
    with pytest.raises(CandidateError, match="fuses blocks"):
        method_named(name)


@pytest.mark.parametrize("name", SCALING)
def test_a_scaling_method_stands_first_in_a_chain(name: str) -> None:
    alone = resolve(Candidate.parse(f"int4-g32:{name}"))[1]
    assert [isinstance(method, ScalingMethod) for method in alone] == [True, False]
    _, chain = resolve(Candidate.parse(f"int4-g32:{name}>gptq@damping=0.1"))
    assert chain == (scaling_named(name), method_named("gptq", (("damping", "0.1"),)))
    assert is_scaled(Candidate.parse(f"int4-g32:{name}>gptq"))
    assert not is_scaled(Candidate.parse("int4-g32:gptq"))
    with pytest.raises(CandidateError, match=f"{name} scales inputs and stands first"):
        resolve(Candidate.parse(f"int4-g32:gptq>{name}"))
    with pytest.raises(CandidateError, match="gptq has no option 'nonsense'"):
        resolve(Candidate.parse(f"int4-g32:{name}>gptq@nonsense=1"))
