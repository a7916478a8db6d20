"""int formats: names, shapes, bytes, states, and products against the plain one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats._grouped import GROUP_SIZES, GroupedLinear
from blockwright.formats.int import IntFormat, IntLinear
from blockwright.numerics.int4_cpu import Int4Matrix, tile_layout
from blockwright.types import GridSolution

NAMES = ("int2-g32", "int3-g64-sym", "int4-g32", "int4-row", "int4", "int5-g32", "int8-row", "int8")
needs_kernel = pytest.mark.skipif(
    tile_layout() is None, reason="no int4 CPU kernel on this machine"
)


def packed(
    name: str,
    shape: tuple[int, int] = (48, 128),
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> GroupedLinear:
    generator = torch.Generator().manual_seed(shape[0])
    W = torch.randn(shape, generator=generator) * 0.02 + 0.005
    format = IntFormat.parse(name)
    grid = format.fit_grid(W)
    bias_O = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    solution = GridSolution(codes_OI=grid.encode(W, slice(None)), grid=grid)
    return format.pack(solution, bias_O, dtype)


def inputs(tokens: int, in_features: int = 128, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, in_features, generator=generator).to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is not written reads as NaN or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


# -- description


def test_canonical_names_come_back() -> None:
    names = [each.name for each in IntFormat.every()]
    assert len(set(names)) == len(names) == 7 * 4 * 2
    assert all(IntFormat.parse(name).name == name for name in names)


@pytest.mark.parametrize(
    ("name", "bits", "group_size", "symmetric"),
    [
        ("int4-g64", 4, 64, False),
        ("int4-g64-sym", 4, 64, True),
        ("int3-row", 3, 0, False),
        ("int8-row-sym", 8, 0, True),
        ("int8", 8, 0, True),
    ],
)
def test_names_say_what_is_stored(name: str, bits: int, group_size: int, symmetric: bool) -> None:
    assert IntFormat.parse(name) == IntFormat(bits, group_size, symmetric)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("int9", "int"), ("int4-g46", "'int4-g64'"), ("int4-64", "int4"), ("int4-sym", "int4")],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(CandidateError, match=f"unknown format '{name}'; did you mean .*{nearest}"):
        IntFormat.parse(name)


def test_impossible_descriptions_are_refused() -> None:
    for bits, group_size in ((1, 64), (9, 64), (4, 48)):
        with pytest.raises(FormatError, match=r"allowed are 2 to 8 bits"):
            IntFormat(bits, group_size, False)


def test_a_group_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(
        FormatError,
        match=r"int4-g128: block 3 down_proj: group size 128 does not divide 11072 inputs;"
        r" use int4-g32 or int4-g64 or int4-row$",
    ):
        IntFormat.parse("int4-g128").check_shape((8, 11072), "block 3 down_proj")
    with pytest.raises(FormatError, match=r"use int8$"):
        IntFormat.parse("int8-g32-sym").check_shape((8, 33), "here")
    IntFormat.parse("int4-row").check_shape((7, 33), "here")


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("int4-g128", 4 + 20 / 128),
        ("int4-g64", 4.3125),
        ("int3-g64", 3 + 19 / 64),
        ("int2-g64", 2 + 18 / 64),
        ("int4-g64-sym", 4.25),
        ("int8", 8 + 16 / 1024),
    ],
)
def test_bits_per_weight_follow_the_affine_formula(name: str, bits_per_weight: float) -> None:
    format, shape = IntFormat.parse(name), (64, 1024)
    stored = format.stored_bytes(shape) * 8 / (64 * 1024)
    groups = format.groups(1024)
    padding = 0.0 if format.symmetric else 64 * (-groups % 8) * format.bits / (64 * 1024)
    assert stored == pytest.approx(bits_per_weight + padding, abs=1e-12)


def test_a_spec_of_another_version_or_with_holes_is_refused() -> None:
    spec = IntFormat.parse("int4-g64").spec()
    with pytest.raises(FormatError, match="version 2, this Blockwright reads up to version 1"):
        IntFormat.from_spec({**spec, "version": 2})
    with pytest.raises(FormatError, match="'version' must be"):
        IntFormat.from_spec({**spec, "version": "1"})
    with pytest.raises(FormatError, match="lacks 'bits'"):
        IntFormat.from_spec({name: value for name, value in spec.items() if name != "bits"})


# -- products


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_features", [16, 48, 64, 80, 7, 33, 1])
def test_the_fast_path_agrees_with_the_reference(name: str, out_features: int) -> None:
    for bias in (False, True):
        module = packed(name, (out_features, 128), bias=bias)
        for tokens in (1, 3, 33, 80):
            x = inputs(tokens)
            y = module(x)
            assert y.shape == (tokens, out_features)
            assert y.dtype == torch.bfloat16
            assert relative(y, module.reference(x.float())) < 1e-2


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["int3-row", "int4-g32", "int5-g32-sym", "int8"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_products_are_as_exact_as_the_dtype(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    module = packed(name, (40, 96), dtype=dtype)
    for tokens in (1, 33):
        x = inputs(tokens, 96, dtype)
        y = module(x)
        assert y.dtype == dtype
        assert relative(y, module.reference(x.float())) < tolerance


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["int3-row", "int4", "int8-row", "int8"])
@pytest.mark.parametrize("in_features", [1, 7, 33, 40, 48])
def test_rows_of_any_length_are_multiplied(name: str, in_features: int) -> None:
    module = packed(name, (9, in_features))
    for tokens in (1, 33):
        x = inputs(tokens, in_features)
        assert relative(module(x), module.reference(x.float())) < 1e-2


def test_leading_dimensions_are_kept_and_no_tokens_are_fine() -> None:
    module = packed("int4-g32")
    x = inputs(6)
    assert torch.equal(module(x.view(2, 3, 128)), module(x).view(2, 3, 48))
    assert torch.equal(module(x[0]), module(x[:1])[0])
    assert module(x.view(3, 2, 128).transpose(0, 1)).shape == (2, 3, 48)
    assert module(x[:0]).shape == (0, 48)


def test_a_wrong_number_of_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="256 inputs given, 128 needed"):
        packed("int4-g32")(inputs(2, 256))


def test_portable_products_agree_in_working_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockwright.formats._linear.CHUNK_WEIGHTS", 500)
    module = packed("int4-row", (21, 33))
    assert module.kernel == "dequantize"
    x = inputs(5, 33)
    assert relative(module(x), module.reference(x.float())) < 1e-2


# -- gradients


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("path", ["forward", "differentiable"])
def test_gradients_to_the_input_are_those_of_the_dense_weight(path: str, prepared: bool) -> None:
    module = packed("int5-g32", dtype=torch.float32)
    module = module.prepare() if prepared else module
    x = inputs(3, dtype=torch.float32).requires_grad_()
    y = module(x) if path == "forward" else module.differentiable(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    dense = torch.nn.functional.linear(x, module.dequantize(), module.bias)
    (expected,) = torch.autograd.grad(dense.square().sum(), x)
    assert torch.allclose(y, dense, atol=1e-5)
    assert torch.allclose(grad, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["int4-g32", "int8"])
def test_gradients_reach_the_scale(name: str) -> None:
    module = packed(name, (4, 32), dtype=torch.float32)
    scale = module.get_buffer("scale").float().requires_grad_()
    module.scale = scale
    x = inputs(3, 32, torch.float32)
    for y in (module.differentiable(x), module(x)):
        (grad,) = torch.autograd.grad(y.square().sum(), scale)
        step = 1e-3 * scale[1, 0].detach()
        with torch.no_grad():
            sums = []
            for sign in (1, -1):
                scale[1, 0] += sign * step
                sums.append(float(module.differentiable(x).double().square().sum()))
                scale[1, 0] -= sign * step
        assert grad[1, 0].item() == pytest.approx((sums[0] - sums[1]) / float(2 * step), rel=1e-2)


def test_a_module_whose_scale_is_trained_stays_portable() -> None:
    module = packed("int4-g32")
    module.get_buffer("scale").requires_grad_()
    assert module.prepare()._matrix is None
    with torch.no_grad():
        assert relative(module(inputs(3)), module.reference(inputs(3))) < 1e-2


# -- states


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_features", [48, 7, 130])
def test_the_portable_tensors_survive_preparing_bit_for_bit(name: str, out_features: int) -> None:
    module = packed(name, (out_features, 128))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    dequantized = module.dequantize()
    index = torch.tensor([out_features - 1, 0, 0])
    rows = module.rows(index)
    module.prepare()
    assert list(before) == list(module.stored_names) == list(module.stored_tensors())
    for state in (module.state_dict(), module.stored_tensors()):
        assert all(torch.equal(state[key], before[key]) for key in before)
        assert all(state[key].dtype == before[key].dtype for key in before)
    assert torch.equal(module.dequantize(), dequantized)
    assert torch.equal(module.rows(index), rows)
    module.restore()
    assert module._matrix is None
    assert torch.equal(module.dequantize(), dequantized)


@needs_kernel
def test_preparing_drops_the_dense_copy() -> None:
    for name, bits in (("int2-g64", 4), ("int4-g64", 4), ("int6-g64", 8), ("int8", 8)):
        module = packed(name, (128, 1024), bias=False).prepare()
        assert module.weight is None
        assert not list(module.buffers())
        planes = 2 if bits == 8 else 1
        scales = 2 * 128 if name == "int8" else planes * 4 * 128 * 16
        assert module.resident_bytes == 128 * 1024 * bits // 8 + scales


def test_the_first_forward_prepares_even_in_inference_mode() -> None:
    module = packed("int4-g32", dtype=torch.float32)
    with torch.inference_mode():
        module(inputs(1, dtype=torch.float32))
    assert (module._matrix is None) == (tile_layout() is None)
    x = inputs(2, dtype=torch.float32).requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None


def test_changing_state_in_inference_mode_makes_ordinary_tensors() -> None:
    module = packed("int4-g32")
    with torch.inference_mode():
        module(inputs(1))
        matrix = module._matrix
        module.restore()
    if isinstance(matrix, Int4Matrix):
        assert not any(tensor.is_inference() for tensor in (*matrix.planes, *matrix.scale_zero))
    scale = module.get_buffer("scale").requires_grad_()
    module(inputs(1)).sum().backward()
    assert scale.grad is not None


def test_loading_restores_the_state_and_the_output() -> None:
    module = packed("int4-g32").prepare()
    empty = module.format.empty((48, 128), bias=True, dtype=torch.bfloat16, device="cpu")
    assert isinstance(empty, IntLinear)
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(inputs(3)), module(inputs(3)))
    other = packed("int4-g32", bias=False)
    other_state = {**packed("int4-g32").state_dict()}
    del other_state["bias"]
    other.prepare().load_state_dict(other_state)
    assert other._matrix is None
    on_meta = module.format.empty((48, 128), bias=True, dtype=torch.bfloat16)
    on_meta.load_stored(module.stored_tensors())
    assert torch.equal(on_meta(inputs(3)), module(inputs(3)))


def test_tensors_of_another_format_are_not_loaded() -> None:
    module = packed("int4-g32")
    with pytest.raises(FormatError, match=r"stores .*zero_point.*got"):
        module.load_stored(packed("int4-g32-sym").stored_tensors())
    with pytest.raises(FormatError, match=r"weight is torch.uint8 .* needs torch.uint8"):
        module.load_stored(packed("int3-g32").stored_tensors())


def test_moving_and_converting_keep_the_stored_tensors() -> None:
    module = packed("int4-g32").prepare()
    before = {key: value.clone() for key, value in module.stored_weight().items()}
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        module.to(dtype)
        assert module.dtype == dtype
        assert module.get_buffer("scale").dtype == torch.bfloat16
        assert all(torch.equal(module.stored_weight()[key], before[key]) for key in before)
        assert module.bias is not None
        assert module.bias.dtype == dtype
        assert module.rows(torch.tensor([1])).dtype == dtype
        assert module(inputs(2, dtype=dtype)).dtype == dtype
    after = module.stored_weight()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert module.to("meta").device.type == "meta"


def test_a_copy_is_independent() -> None:
    module = packed("int4-g32").prepare()
    copied = copy.deepcopy(module)
    assert torch.equal(copied(inputs(2)), module(inputs(2)))
    copied.load_stored(packed("int4-g32", (48, 128), bias=True).to(torch.bfloat16).stored_tensors())
    assert torch.equal(module.stored_tensors()["weight"], copied.stored_tensors()["weight"])


def test_plain_loading_of_a_packed_folder_would_raise_on_the_shape() -> None:
    plain = torch.nn.Linear(128, 48)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        plain.load_state_dict(packed("int8").state_dict(), strict=False)


# -- accuracy


def test_error_falls_four_times_per_bit_and_with_smaller_groups() -> None:
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def error(name: str) -> float:
        format = IntFormat.parse(name)
        grid = format.fit_grid(W, search=True)
        return float((grid.decode(grid.encode(W, slice(None)), slice(None)) - W).square().sum())

    for suffix in ("g64", "row", "g64-sym"):
        errors = [error(f"int{bits}-{suffix}") for bits in range(2, 9)]
        ratios = [left / right for left, right in itertools.pairwise(errors)]
        assert 3 < ratios[0] < 8
        assert all(3.5 < ratio < 4.5 for ratio in ratios[1:])
    sizes = [size for size in GROUP_SIZES if size]
    by_group = [error(f"int4-g{size}") for size in sizes] + [error("int4-row")]
    assert by_group == sorted(by_group)


def test_importance_moves_the_error_to_where_it_does_not_matter() -> None:
    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    importance = torch.ones(128)
    importance[:16] = 100.0
    format = IntFormat.parse("int3-g64")
    weighted = []
    for given in (None, importance):
        grid = format.fit_grid(W, search=True, importance_I=given)
        D = grid.decode(grid.encode(W, slice(None)), slice(None)) - W
        weighted.append(float((D.square() * importance).sum()))
    assert weighted[1] < weighted[0]


def test_a_slice_of_whole_groups_gets_the_grid_of_the_whole() -> None:
    W = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    format = IntFormat.parse("int4-g32")
    whole, part = format.fit_grid(W), format.fit_grid(W[:, 32:96])
    assert torch.equal(part.scale, whole.scale[:, 1:3])
    assert torch.equal(part.zero_point, whole.zero_point[:, 1:3])
