"""nf formats: their values, names, shapes and bytes."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.nf import NfFormat, normal_float

NF4 = (
    *(-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1),
)
NF3 = (-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1)
NF2 = (-1, 0, 0.3379, 1)


@pytest.mark.parametrize(("bits", "published"), [(4, NF4), (3, NF3), (2, NF2)])
def test_values_are_the_published_ones(bits: int, published: tuple[float, ...]) -> None:
    assert normal_float(bits).values == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize("name", ["nf4", "nf5-g64", "nf4-g16", "nf4-64", "nf4-g64-dd"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'nf4-g64'\? \(nf2 to nf4"):
        NfFormat.parse(name)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        FormatError, match="nf format of 5 bits in groups of 64: allowed are 2 to 4"
    ):
        NfFormat(5, 64)


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(FormatError, match=r"nf3-g64-dq: site: .* 96 inputs; use nf3-g32-dq or nf3"):
        NfFormat.parse("nf3-g64-dq").check_shape((8, 96), "site")
    with pytest.raises(FormatError, match="is empty"):
        NfFormat.parse("nf4-row").check_shape((0, 96), "site")


@pytest.mark.parametrize(
    ("name", "bits"),
    [("nf4-g64", 4.25), ("nf4-g64-dq", 4 + (8 + 48 / 256) / 64), ("nf3-row", 3 + 16 / 1024)],
)
def test_bits_per_weight(name: str, bits: float) -> None:
    assert NfFormat.parse(name).stored_bytes((512, 1024)) * 8 == bits * 512 * 1024


def test_a_missing_field_of_a_spec_is_named() -> None:
    with pytest.raises(FormatError, match="lacks 'double'"):
        NfFormat.from_spec({"format": "nf", "version": 1, "bits": 4, "group_size": 64})


@pytest.mark.parametrize("name", ["nf4-g32", "nf4-g32-dq"])
def test_scales_are_trained(name: str) -> None:
    format = NfFormat.parse(name)
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed = format.pack(format.nearest(W), None, torch.float32)
    trained = [
        each for each in packed.weight_names if packed.stored_tensor(each).dtype.is_floating_point
    ]
    for each in trained:
        packed.replace_stored(each, packed.stored_tensor(each).float().requires_grad_())
    x = torch.ones(2, 64)
    packed(x).square().sum().backward()
    assert trained == (["scale_offset", "scale_step"] if format.double else ["scale"])
    assert all(packed.stored_tensor(each).grad is not None for each in trained)
    assert torch.equal(packed.prepare().product(x), packed.differentiable(x))


def test_replaced_scales_are_multiplied_at_once() -> None:
    format = NfFormat.parse("nf4-g32")
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed = format.pack(format.nearest(W), None, torch.float32)
    x = torch.ones(2, 64)
    before = packed(x)
    packed.replace_stored("scale", 2 * packed.stored_tensor("scale"))
    assert torch.equal(packed(x), 2 * before)


def test_scales_that_are_not_double_quantized_are_refused() -> None:
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    plain = NfFormat(4, 32).nearest(W)
    with pytest.raises(ValueError, match="not double-quantized"):
        NfFormat(4, 32, double=True).pack(plain, None, torch.bfloat16)
    with pytest.raises(TypeError, match="its own codebook"):
        NfFormat(3, 32).pack(plain, None, torch.bfloat16)
