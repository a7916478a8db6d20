"""dyadic formats: names, bytes, and integers all the way."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import dyadic
from blockwright.formats.dyadic import MOST_INPUTS, DyadicIntFormat, DyadicLinear
from blockwright.methods.quantize.hawq import Hawq
from blockwright.numerics.int8_product import multiplies_integers
from blockwright.types import Statistics

needs_kernel = pytest.mark.skipif(
    not multiplies_integers(), reason="no int8 product on this machine"
)


def inputs(tokens: int, features: int = 120) -> Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(1)).bfloat16()


def packed(bits: int, *, bias: bool = False) -> DyadicLinear:
    W = torch.randn(24, 120, generator=torch.Generator().manual_seed(0)) * 0.02
    W[5] = 0
    seen = Statistics(tokens=40, input_absmax=inputs(40).float().abs().amax(0))
    format = DyadicIntFormat(bits)
    bias_O = torch.linspace(-3, 3, 24) if bias else None
    return format.pack(Hawq(compensate=False).solve(W, seen, format), bias_O, torch.bfloat16)


def in_exact_integers(module: DyadicLinear, x: Tensor) -> list[list[int]]:
    """The same in Python's integers."""
    input_scale = module.scales[0].float()
    q = (x.float() / input_scale).round().clamp(-127, 127).long().tolist()
    codes = module._signed(slice(None)).tolist()
    found = []
    for token in q:
        row = []
        for o, code in enumerate(codes):
            total = sum(a * b for a, b in zip(token, code, strict=True))
            by = Fraction(int(module.multiplier[o]), 2 ** int(module.shift[o]))
            row.append(max(-32767, min(32767, floor(total * by + Fraction(1, 2)))))
        found.append(row)
    return found


@pytest.mark.parametrize("name", ["dyadic", "dyadic6", "dyadic8-g64"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'dyadic8'\?"):
        DyadicIntFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="6 bits: allowed are 4 and 8"):
        DyadicIntFormat(6)
    with pytest.raises(FormatError, match="can pass 32 bits"):
        DyadicIntFormat(8).check_shape((8, MOST_INPUTS + 1), "site")
    with pytest.raises(FormatError, match="is empty"):
        DyadicIntFormat(8).check_shape((0, 8), "site")


def test_bits_per_weight_follow_the_formula() -> None:
    for bits in (4, 8):
        assert DyadicIntFormat(bits).stored_bytes((512, 1000)) * 8 == 512 * (bits * 1000 + 40) + 64


@needs_kernel
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_those_of_exact_integers(bits: int) -> None:
    module, x = packed(bits), inputs(6)
    expected = torch.tensor(in_exact_integers(module, x))
    assert torch.equal(module._integer_outputs(x), expected)
    assert torch.equal(module(x), (expected.float() * module.scales[1]).bfloat16())
    biased = packed(bits, bias=True)
    units = (torch.linspace(-3, 3, 24) / module.scales[1]).round()
    assert torch.equal(biased(x), ((expected + units) * module.scales[1]).bfloat16())


@needs_kernel
def test_integers_are_near_the_real_product_within_the_calibrated_range() -> None:
    module, x = packed(8, bias=True), inputs(40)
    exact = F.linear(x.float(), module.dequantize(), torch.linspace(-3, 3, 24))
    assert (module(x) - exact).norm() < 2e-2 * exact.norm()
    huge = module(100 * x)  # beyond the range inputs are cut off, loudly wrong but finite
    assert torch.isfinite(huge).all()
    assert torch.equal(module(torch.zeros(0, 120).bfloat16()), torch.zeros(0, 24).bfloat16())


def test_fp32_inputs_and_gradients_take_the_weight_itself() -> None:
    module, x = packed(8), inputs(3).float()
    torch.testing.assert_close(module(x), F.linear(x, module.dequantize()), rtol=1e-5, atol=1e-6)
    asked = inputs(3).requires_grad_()
    module(asked).sum().backward()
    assert asked.grad is not None
    with pytest.raises(ValueError, match="64 inputs given, 120 needed"):
        module(torch.ones(1, 64))


def test_without_an_integer_product_it_dequantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dyadic, "multiplies_integers", lambda _device="cpu": False)
    module, x = packed(8), inputs(3)
    assert module.kernel == "dequantize"
    assert not module.format.limits.packed_on_cpu
    expected = F.linear(x.float(), module.dequantize())
    assert (module(x) - expected).norm() < 1e-2 * expected.norm()
