"""Laws of every format, run over everything that is registered."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from blockwright import registry
from blockwright.errors import CandidateError, FormatError
from blockwright.formats import FormatLinear, format_from_spec
from blockwright.types import Format, GridFormat, PackedFormat

NAMES = [
    name for stem in registry.format_stems() for name in registry.format_class(stem).examples()
]
GRIDS = [name for name in NAMES if isinstance(registry.format_named(name), GridFormat)]
SHAPES = [(48, 128), (7, 384)]


def weight(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def filled(name: str, shape: tuple[int, int] = SHAPES[0], *, bias: bool = True) -> FormatLinear:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    W = weight(shape)
    grid = format.fit_grid(W, search=True)
    bias_O = torch.linspace(-1, 1, shape[0]).bfloat16() if bias else None
    packed = format.pack(grid.encode(W, slice(None)), grid, bias_O, torch.bfloat16)
    assert isinstance(packed, FormatLinear)
    return packed


@pytest.mark.parametrize("stem", registry.format_stems())
def test_every_format_file_offers_examples_of_its_own(stem: str) -> None:
    names = registry.format_class(stem).examples()
    assert names
    assert all(
        isinstance(registry.format_named(name), registry.format_class(stem)) for name in names
    )
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


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_declared_bytes_are_the_saved_bytes(name: str, shape: tuple[int, int], bias: bool) -> None:
    packed = filled(name, shape, bias=bias)
    packed.format.check_shape(shape, "test")
    tensors = packed.stored_tensors()
    saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    declared = packed.format.stored_bytes(shape) + (2 * shape[0] if bias else 0)
    assert packed.stored_bytes == declared == saved


@pytest.mark.parametrize("name", GRIDS)
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


@pytest.mark.parametrize("name", GRIDS)
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


@pytest.mark.parametrize("name", GRIDS)
def test_fast_reference_and_differentiable_products_agree(name: str) -> None:
    packed = filled(name)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = packed.reference(x.float())
    for y in (packed(x), packed.differentiable(x), packed.restore().differentiable(x)):
        assert y.dtype == x.dtype
        assert (y - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("name", GRIDS)
def test_rows_are_the_rows_of_the_dequantized_weight(name: str) -> None:
    packed = filled(name)
    index = torch.tensor([47, 0, 3, 3])
    expected = packed.dequantize()[index].bfloat16()
    assert torch.equal(packed.rows(index), expected)
    assert torch.equal(packed.prepare().rows(index), expected)


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_solved_is_what_is_stored_and_nothing_is_modified(name: str) -> None:
    format = registry.format_named(name)
    assert isinstance(format, GridFormat)
    W = weight(SHAPES[0])
    before = W.clone()
    grid = format.fit_grid(W)
    codes = grid.encode(W, slice(None))
    values = grid.decode(codes, slice(None))
    assert torch.equal(W, before)
    packed = format.pack(codes, grid, None, torch.bfloat16)
    assert isinstance(packed, FormatLinear)
    assert torch.equal(packed.dequantize(), values)
    assert torch.equal(packed.prepare().dequantize(), values)


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
