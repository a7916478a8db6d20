"""affine formats: names, shapes, bytes, and the kernel that adds the offset."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.affine import AffineFormat, AffineLinear
from blockwright.numerics.int4_cpu import tile_layout

needs_kernel = pytest.mark.skipif(
    tile_layout() is None, reason="no int4 CPU kernel on this machine"
)


def packed(name: str, shape: tuple[int, int] = (48, 128)) -> AffineLinear:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01
    format = AffineFormat.parse(name)
    module = format.pack(format.nearest(W), None, torch.bfloat16)
    assert isinstance(module, AffineLinear)
    return module


def inputs(tokens: int, in_features: int = 128) -> Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["affine4", "affine9-g64", "affine0-row", "affine4-g16"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'affine4-g64'\? \(affine1 to affine8"):
        AffineFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="affine format of 9 bits in groups of 64: allowed are 1"):
        AffineFormat(9, 64)
    with pytest.raises(FormatError, match="100 inputs; use affine2-row"):
        AffineFormat(2, 64).check_shape((8, 100), "site")


@pytest.mark.parametrize(("name", "bits"), [("affine1-g64", 1.5), ("affine5-g128", 5.25)])
def test_bits_per_weight(name: str, bits: float) -> None:
    assert AffineFormat.parse(name).stored_bytes((512, 1024)) * 8 == bits * 512 * 1024


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_reach_from_the_least_to_the_largest_weight(bits: int) -> None:
    W = torch.tensor([[0.5, 0.5, 1.25, 1.0], [-1.0, 2.0, 0.0, 0.5]])
    grid = AffineFormat(bits, 0).fit_grid(W)
    low, high = (
        grid.decode(torch.full((2, 1), code, dtype=torch.uint8), slice(0, 1))[:, 0]
        for code in (0, (1 << bits) - 1)
    )
    torch.testing.assert_close(low, W.amin(1), rtol=0.01, atol=0.01)
    torch.testing.assert_close(high, W.amax(1), rtol=0.01, atol=0.01)


@needs_kernel
@pytest.mark.parametrize(("name", "kernel"), [("affine1-row", "int4"), ("affine5-g32", "int4 x 2")])
def test_the_kernel_holds_the_only_copy(name: str, kernel: str) -> None:
    module = packed(name)
    assert module.kernel == kernel
    stored = {key: tensor.clone() for key, tensor in module.stored_tensors().items()}
    module.prepare()
    assert module.weight is None
    assert all(torch.equal(module.stored_tensors()[key], stored[key]) for key in stored)
    assert module.restore().weight is not None


@needs_kernel
@pytest.mark.parametrize("name", ["affine2-row", "affine6-row"])
def test_rows_that_no_kernel_group_divides_are_dequantized(name: str) -> None:
    module = packed(name, (16, 40))
    assert module.kernel == "dequantize"
    x = inputs(3, 40)
    torch.testing.assert_close(module(x), x @ module.dequantize().T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 5, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["affine3-g32", "affine8-g64"])
def test_products_agree_with_the_plain_one(name: str, tokens: int, dtype: torch.dtype) -> None:
    module, x = packed(name), inputs(tokens).to(dtype)
    expected = x.float() @ module.dequantize().T
    y = module(x)
    assert y.dtype == dtype
    assert (y - expected).norm() < 1e-2 * expected.norm()


def test_trained_offsets_and_scales_get_gradients() -> None:
    module = packed("affine4-g64").restore()
    for name in ("scale", "offset"):
        module.replace_stored(name, module.stored_tensor(name).float().requires_grad_())
    x = inputs(2)
    module.prepare()(x).sum().backward()
    offset = module.stored_tensor("offset").grad
    assert offset is not None
    torch.testing.assert_close(offset, x.sum(0).view(2, 64).sum(1).expand(48, 2))
    assert module.stored_tensor("scale").grad is not None


def test_inputs_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="affine4-g64: 64 inputs given, 128 needed"):
        packed("affine4-g64")(torch.ones(1, 64))
