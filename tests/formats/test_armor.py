"""armor formats: names, bytes by formula, products, errors."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats.armor import ArmorFormat, ArmorLinear
from blockwright.registry import format_named
from blockwright.types import MaskedSolution, WrappedSolution


def armor_format(name: str) -> ArmorFormat:
    format = format_named(name)
    assert isinstance(format, ArmorFormat)
    return format


def packed(name: str, shape: tuple[int, int] = (32, 64)) -> ArmorLinear:
    format, random = armor_format(name), torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=random).bfloat16().float()
    mask = format.core.best_mask(W.abs())
    b = format.block
    left, right = (torch.randn(n // b, b, b, generator=random).bfloat16() for n in shape)
    values = format.core.values.nearest(W[mask].view(shape[0], -1))
    core = MaskedSolution(mask_OI=mask, values=values)
    solution = WrappedSolution(left_JBB=left, core=core, right_KBB=right)
    return format.pack(solution, torch.ones(shape[0]).bfloat16(), torch.bfloat16)


def test_the_weight_is_the_dense_product() -> None:
    module = packed("armor-b8")
    core = module.part("core").dequantize()
    A, B = (torch.block_diag(*blocks.float()) for blocks in (module.left, module.right))
    torch.testing.assert_close(module.dequantize(), A @ core @ B)


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("armor-b8", 9 + 16 * 8 * (1 / 256 + 1 / 640)),
        ("armor-b128", 9 + 16 * 128 * (1 / 256 + 1 / 640)),
        ("armor-b8+int8", 4 + 16 / 640 + 1 + 16 * 8 * (1 / 256 + 1 / 640)),
    ],
)
def test_bytes_are_those_of_the_formula(name: str, bits_per_weight: float) -> None:
    stored = armor_format(name).stored_bytes((256, 640))
    assert stored * 8 / (256 * 640) == pytest.approx(bits_per_weight)


def test_wrappers_and_values_can_be_trained() -> None:
    module = packed("armor-b8").restore()
    trained = [module.left, module.part("core").get_submodule("values").get_buffer("weight")]
    for tensor in trained:
        tensor.requires_grad_()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(module.differentiable(x).sum(), trained)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_core_runs_as_a_sparse_weight_does() -> None:
    assert packed("armor-b8").prepare().kernel == "block-diagonal, dequantized once"


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("armor-b32", (64, 48), "48 features are not whole blocks of 32; use armor-b16"),
        ("armor-b8", (64, 12), "use a format without blocks"),
        ("armor-b8+int4-g64", (64, 64), "group size 64 does not divide 32"),
    ],
)
def test_shapes_it_cannot_take_say_what_fits(
    name: str, shape: tuple[int, int], reason: str
) -> None:
    with pytest.raises(FormatError, match=f"model.layers.0.q.*{reason}"):
        armor_format(name).check_shape(shape, "model.layers.0.q_proj")


@pytest.mark.parametrize("name", ["armor", "armor-b4", "armor-b12", "armor-b256"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'armor-b32'.*8, 16, 32, 64, 128"):
        format_named(name)


def test_a_damaged_spec_says_what_is_wrong() -> None:
    spec = armor_format("armor-b8").spec()
    with pytest.raises(FormatError, match="core"):
        format_from_spec({key: value for key, value in spec.items() if key != "core"})
    with pytest.raises(FormatError, match="is no sparse core"):
        format_from_spec({**spec, "core": format_named("int8").spec()})
    with pytest.raises(FormatError, match="the core is sparse2of4"):
        format_from_spec({**spec, "core": format_named("sparse1of4").spec()})
