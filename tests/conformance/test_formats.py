"""Laws of every format, run over everything that is registered."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache

import pytest
import torch
from safetensors.torch import load, save

from blockwright import registry
from blockwright.errors import CandidateError, FormatError, NumericalError
from blockwright.formats import FormatLinear, format_from_spec
from blockwright.types import Format, GridFormat, PackedFormat, Solution, Statistics

NAMES = [
    name for stem in registry.format_stems() for name in registry.format_class(stem).examples()
]
PACKED = [name for name in NAMES if isinstance(registry.format_named(name), PackedFormat)]
GRIDS = [name for name in NAMES if isinstance(registry.format_named(name), GridFormat)]
SHAPES = [(48, 128), (7, 384)]


class Unknown(Solution):
    """A solution that no format stores."""

    def weight(self) -> torch.Tensor:
        return torch.zeros(SHAPES[0])


def weight(shape: tuple[int, int]) -> torch.Tensor:
    """bfloat16 numbers, as most checkpoints hold."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    return values.bfloat16().float()


def solved(name: str, shape: tuple[int, int] = SHAPES[0]) -> tuple[PackedFormat, Solution]:
    """The default method's solution, or a skip where the format cannot take the shape."""
    format = registry.format_named(name)
    assert isinstance(format, PackedFormat)
    try:
        format.check_shape(shape, "test")
    except FormatError:
        assert shape != SHAPES[0], f"{name} is tried at no shape"
        pytest.skip(f"{name} cannot take {shape}")
    return format, deepcopy(solution(format, shape))


@cache
def solution(format: PackedFormat, shape: tuple[int, int]) -> Solution:
    """What the default method finds, once."""
    method = registry.method_named(format.default_method or "")
    statistics = Statistics(
        tokens=1000,
        input_gram=torch.eye(shape[1]),
        input_absmax=torch.linspace(3, 5, shape[1]),  # as large as the inputs below
        output_gradient=torch.linspace(1, 2, shape[0]),
    )
    return method.solve(weight(shape), statistics, format)


def filled(name: str, shape: tuple[int, int] = SHAPES[0], *, bias: bool = True) -> FormatLinear:
    format, solution = solved(name, shape)
    bias_O = torch.linspace(-1, 1, shape[0]).bfloat16() if bias else None
    packed = format.pack(solution, bias_O, torch.bfloat16)
    assert isinstance(packed, FormatLinear)
    return packed


@pytest.mark.parametrize("stem", registry.format_stems())
def test_every_format_file_offers_examples_of_its_own(stem: str) -> None:
    names = registry.format_class(stem).examples()
    assert names
    assert all(
        isinstance(registry.format_named(name), registry.format_class(stem)) for name in names
    )
    for values in ("int8", "drop"):
        with pytest.raises(CandidateError, match="values"):
            registry.format_named(f"{names[0]}+{values}+int8")
    with pytest.raises(CandidateError):
        registry.format_named(f"{stem}-nonsense")


@pytest.mark.parametrize("name", NAMES)
def test_names_and_specs_round_trip_through_json(name: str) -> None:
    format = registry.format_named(name)
    assert format.name == name
    spec = json.loads(json.dumps(format.spec()))
    assert spec["version"] == format.version
    assert format_from_spec(spec) == format
    assert hash(format) == hash(format_from_spec(spec))


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_version_is_refused(name: str) -> None:
    format = registry.format_named(name)
    with pytest.raises(FormatError, match="upgrade"):
        format_from_spec({**format.spec(), "version": format.version + 1})


@pytest.mark.parametrize("name", NAMES)
def test_default_methods_exist_and_can_fill(name: str) -> None:
    format: Format = registry.format_named(name)
    assert format.kinds
    if format.default_method is not None:
        assert isinstance(format, registry.method_class(format.default_method).fills)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_declared_bytes_are_the_saved_bytes(name: str, shape: tuple[int, int], bias: bool) -> None:
    packed = filled(name, shape, bias=bias)
    packed.format.check_shape(shape, "test")
    tensors = packed.stored_tensors()
    saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    declared = packed.format.stored_bytes(shape) + (2 * shape[0] if bias else 0)
    assert packed.stored_bytes == declared == saved


@pytest.mark.parametrize("name", PACKED)
def test_empty_modules_have_the_layout_of_filled_ones(name: str) -> None:
    packed = filled(name)
    assert isinstance(packed.format, PackedFormat)
    for device in ("meta", "cpu"):
        empty = packed.format.empty(SHAPES[0], bias=True, dtype=torch.bfloat16, device=device)
        assert isinstance(empty, FormatLinear)
        assert empty.stored_names == packed.stored_names
        assert {key: (value.dtype, value.shape) for key, value in empty.state_dict().items()} == {
            key: (value.dtype, value.shape) for key, value in packed.state_dict().items()
        }


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_it_multiplies_alike(name: str, shape: tuple[int, int]) -> None:
    packed = filled(name, shape)
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    first = packed(x)
    assert first.dtype == x.dtype
    assert first.shape == (3, shape[0])
    assert torch.isfinite(first).all()
    loaded = format_from_spec(packed.format.spec())
    assert isinstance(loaded, PackedFormat)
    module = loaded.empty(shape, bias=True, dtype=torch.bfloat16)
    module.load_stored(load(save(packed.stored_tensors())))
    assert torch.equal(module(x), first)
    again, before = module.stored_tensors(), packed.stored_tensors()
    assert all(torch.equal(again[key], before[key]) for key in before)


@pytest.mark.parametrize("name", PACKED)
def test_fast_reference_and_differentiable_products_agree(name: str) -> None:
    packed = filled(name)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = packed.reference(x.float())
    rounded_inputs = 2e-2 if packed.kernel == "int8 x int8" else 1e-2
    for y in (packed(x), packed.differentiable(x), packed.restore().differentiable(x)):
        assert y.dtype == x.dtype
        assert (y - exact).norm() < rounded_inputs * exact.norm()


@pytest.mark.parametrize("name", PACKED)
def test_rows_are_the_rows_of_the_dequantized_weight(name: str) -> None:
    packed = filled(name)
    index = torch.tensor([47, 0, 3, 3])
    expected = packed.dequantize()[index].bfloat16()
    assert torch.equal(packed.rows(index), expected)
    assert torch.equal(packed.prepare().rows(index), expected)


@pytest.mark.parametrize("name", PACKED)
def test_what_is_solved_is_what_is_stored_and_nothing_is_modified(name: str) -> None:
    format, solution = solved(name)
    before = solution.weight()
    packed = format.pack(solution, None, torch.bfloat16)
    assert isinstance(packed, FormatLinear)
    assert torch.equal(packed.dequantize(), before)
    assert torch.equal(packed.prepare().dequantize(), before)
    assert torch.equal(solution.weight(), before)


@pytest.mark.parametrize("name", PACKED)
def test_state_dicts_are_the_stored_tensors_in_every_state(name: str) -> None:
    packed = filled(name)
    portable = {key: tensor.clone() for key, tensor in packed.state_dict().items()}
    assert set(portable) == set(packed.stored_names)
    prepared = packed.prepare().state_dict()
    assert portable.keys() == prepared.keys()
    assert all(torch.equal(portable[key], prepared[key]) for key in portable)
    restored = packed.restore().stored_tensors()
    assert all(torch.equal(portable[key], restored[key]) for key in portable)


@pytest.mark.parametrize("name", PACKED)
def test_converted_it_keeps_its_stored_tensors(name: str) -> None:
    packed = filled(name)
    before = {key: tensor.clone() for key, tensor in packed.stored_tensors().items()}
    packed.prepare().to(torch.float32)
    after = packed.stored_tensors()
    assert all(torch.equal(after[key], before[key]) for key in before if key != "bias")
    assert packed(torch.ones(1, SHAPES[0][1])).dtype == torch.float32


@pytest.mark.parametrize("name", PACKED)
def test_gradients_reach_the_inputs(name: str) -> None:
    packed = filled(name)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = torch.ones(5, 48) @ packed.dequantize()
    for product in (packed, packed.differentiable, packed.prepare()):
        asked = x.clone().requires_grad_()
        product(asked).sum().backward()
        assert asked.grad is not None
        assert (asked.grad - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("name", PACKED)
def test_solutions_of_another_kind_are_refused(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, PackedFormat)
    with pytest.raises(TypeError, match="stores"):
        format.pack(Unknown(), None, torch.bfloat16)


@pytest.mark.parametrize("name", PACKED)
def test_a_plain_load_stops_at_the_weight(name: str) -> None:
    stored = filled(name).stored_tensors()["weight"]
    assert stored.shape != SHAPES[0]


@pytest.mark.parametrize("name", GRIDS)
def test_values_of_the_grid_are_recovered_exactly_and_zero_stays_zero(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    grid = format.fit_grid(weight(SHAPES[0]))
    values = grid.decode(grid.encode(weight(SHAPES[0]), slice(None)), slice(None))
    assert torch.equal(grid.decode(grid.encode(values, slice(None)), slice(None)), values)
    zeros = torch.zeros(SHAPES[0])
    of_zeros = format.fit_grid(zeros, search=True)
    assert torch.equal(of_zeros.decode(of_zeros.encode(zeros, slice(None)), slice(None)), zeros)


@pytest.mark.parametrize("name", GRIDS)
def test_groups_that_do_not_divide_are_refused_with_a_format_that_fits(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    if not format.group_size:
        pytest.skip("any number of inputs fits a row")
    with pytest.raises(FormatError, match=f"{name}: here: .*{format.group_size}.*; use ") as caught:
        format.check_shape((8, format.group_size + 8), "here")
    fitting = str(caught.value).rpartition(" ")[2]
    registry.format_named(fitting).check_shape((8, format.group_size + 8), "here")


@pytest.mark.parametrize("name", GRIDS)
def test_weights_that_are_not_finite_have_no_grid(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    for value in (float("nan"), float("inf")):
        W = weight(SHAPES[0])
        W[1, 2] = value
        with pytest.raises(NumericalError, match="not finite"):
            format.fit_grid(W)


@pytest.mark.parametrize("name", GRIDS)
def test_searching_is_never_worse_than_not(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    W = weight(SHAPES[0])
    errors = []
    for search in (False, True):
        grid = format.fit_grid(W, search=search)
        D = grid.decode(grid.encode(W, slice(None)), slice(None)) - W
        errors.append(float(D.double().square().sum()))
    assert errors[1] <= errors[0] * (1 + 1e-6)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shape", [*SHAPES, (48, 40), (130, 256)])
def test_declared_resident_bytes_are_those_of_the_loaded_module(
    name: str, shape: tuple[int, int]
) -> None:
    format = registry.format_named(name)
    try:
        format.check_shape(shape, "test")
    except FormatError:
        pytest.skip("not for this shape")
    packed = filled(name, shape, bias=False)
    assert packed.prepare().resident_bytes == packed.format.resident_bytes(shape)
    assert packed.resident_bytes <= format.resident_bytes(shape)
