"""Codes between least and largest value."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.minmax import decode_minmax, encode_minmax


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_number_is_further_than_half_a_step(bits: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(bits)
    x = (3 * torch.randn(50, 64, generator=draw) + 20 * torch.randn(50, 1, generator=draw)).to(
        dtype
    )
    codes, low, scale = encode_minmax(x, bits)
    top = (1 << bits) - 1
    assert (int(codes.min()), int(codes.max())) == (0, top)
    assert low.dtype == scale.dtype == dtype
    found = decode_minmax(codes, low, scale)
    rounding = torch.finfo(dtype).eps
    allowed = scale.float() * (0.5 + top * rounding) + x.float().abs().amax(-1) * rounding
    assert ((found.float() - x.float()).abs() <= allowed[:, None]).all()


def test_groups_of_one_value_are_exact() -> None:
    x = torch.tensor([[0.1, 0.1], [0.0, 0.0], [-7.3, -7.3]])
    for bits in (1, 8):
        assert torch.equal(decode_minmax(*encode_minmax(x, bits)), x)


def test_whole_numbers_of_a_full_range_are_exact() -> None:
    x = torch.arange(-100, 156).float()[None]
    assert torch.equal(decode_minmax(*encode_minmax(x, 8)), x)
