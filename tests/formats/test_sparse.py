"""sparse formats: names, bytes by formula, masks that fit, states, errors."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats.sparse import SparseFormat, SparseLinear
from blockwright.registry import format_named
from blockwright.types import MaskedSolution

NAMES = ("sparse2of4", "sparse1of4", "sparse4of8", "sparse5of16", "sparse50", "sparse90")


def sparse_format(name: str) -> SparseFormat:
    format = format_named(name)
    assert isinstance(format, SparseFormat)
    return format


def packed(name: str, shape: tuple[int, int] = (24, 128)) -> tuple[SparseLinear, torch.Tensor]:
    """A module and its weight; some kept values are zero."""
    format = sparse_format(name)
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    mask = format.best_mask(W.abs())
    W[::3, ::2] = -0.0
    values = format.values.nearest(W[mask].view(shape[0], -1))
    solution = MaskedSolution(mask_OI=mask, values=values)
    return format.pack(solution, None, torch.bfloat16), solution.weight()


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_values_come_back_bit_for_bit(name: str) -> None:
    module, W = packed(name)
    assert torch.equal(module.dequantize(), W)
    before = module.stored_tensors()
    module.prepare()
    assert module.resident_bytes < 24 * 128 * 2 + 24 * 128 // 4 + 1  # the values are not kept twice
    after = module.restore().stored_tensors()
    for key, tensor in before.items():
        assert torch.equal(after[key].view(torch.uint8), tensor.view(torch.uint8)), key


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("sparse2of4", 8 + 1),
        ("sparse1of4", 4 + 0.5),
        ("sparse2of8", 4 + 0.75),
        ("sparse8of16", 8 + 2),
        ("sparse50", 8 + 1),
        ("sparse80", 3.2 + 1),
        ("sparse2of4+int8", 4 + 16 / 640 + 1),
        ("sparse2of4+int4-g64", 2 + (16 + 4) / 128 + 1),
    ],
)
def test_bytes_are_those_of_the_formula(name: str, bits_per_weight: float) -> None:
    shape = (64, 640)
    stored = sparse_format(name).stored_bytes(shape)
    assert stored * 8 / (64 * 640) == pytest.approx(bits_per_weight)


def test_a_mask_that_breaks_the_pattern_is_refused() -> None:
    format = sparse_format("sparse2of4")
    mask = torch.tensor([[True, True, True, False, True, False, False, False]])
    solution = MaskedSolution(mask_OI=mask, values=format.values.nearest(torch.ones(1, 4)))
    with pytest.raises(ValueError, match=r"keeps \[1, 3\] per group"):
        format.pack(solution, None, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("sparse2of4", (8, 90), "90 inputs are not whole groups of 4; use sparse50"),
        ("sparse1of16", (8, 90), "use sparse90"),
        ("sparse15of16", (8, 90), "use sparse10"),
        ("sparse90", (8, 4), "nothing of 4 inputs would stay"),
        ("sparse2of4+int4-g32", (8, 96), "values of sparse2of4: group size 32 does not divide 48"),
    ],
)
def test_shapes_it_cannot_take_say_what_fits(
    name: str, shape: tuple[int, int], reason: str
) -> None:
    with pytest.raises(FormatError, match=f"model.layers.0.q.*{reason}"):
        sparse_format(name).check_shape(shape, "model.layers.0.q_proj")


@pytest.mark.parametrize(
    "name",
    ["sparse", "sparse4of4", "sparse5of4", "sparse2of5", "sparse0of4", "sparse55", "sparse0"],
)
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'sparse2of4'.*N below M"):
        format_named(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sparse50+int4-g64", "begin at another input in every row; .* e.g. \\+int4 or \\+int8"),
        ("sparse3of4+int4-g64", "groups of 64 values are not whole patterns of 3"),
        ("sparse2of4+rank-p50", "cannot store values"),
    ],
)
def test_values_that_do_not_fit_the_pattern_are_refused(name: str, reason: str) -> None:
    with pytest.raises(CandidateError, match=reason):
        format_named(name)


def test_a_damaged_spec_says_what_is_wrong() -> None:
    spec = sparse_format("sparse2of4").spec()
    with pytest.raises(FormatError, match="lacks 'n'"):
        format_from_spec({key: value for key, value in spec.items() if key != "n"})
    with pytest.raises(FormatError, match="4, 8 or 16"):
        format_from_spec({**spec, "m": 5})
    with pytest.raises(FormatError, match="4, 8 or 16"):
        format_from_spec({**spec, "percent": 50})


@pytest.mark.parametrize("name", ["sparse2of4", "sparse50+int4"])
def test_values_can_be_trained(name: str) -> None:
    module, _ = packed(name)
    trained = "weight" if name == "sparse2of4" else "scale"
    values = module.restore().part("values").get_buffer(trained).requires_grad_()
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    for product in (module, module.differentiable):
        (gradient,) = torch.autograd.grad(product(x).sum(), values)
        assert gradient.abs().sum() > 0


def test_no_speed_is_declared_on_a_cpu() -> None:
    for name in NAMES:
        limits = sparse_format(name).limits
        assert not limits.packed_on_cpu
        assert limits.resident_bits > 16
    assert packed("sparse2of4")[0].prepare().kernel == "dequantized once"
