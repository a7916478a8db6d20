"""fp formats: the numbers of few bits, names and bytes."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.fp import FpFormat, small_float
from blockwright.numerics.codebooks import Codebook

KINDS = [(x, y) for x in range(2, 8) for y in range(8 - x)]


@pytest.mark.parametrize(("exponent", "mantissa"), KINDS)
def test_all_numbers_differ_but_the_zeros(exponent: int, mantissa: int) -> None:
    values = small_float(exponent, mantissa).values
    bits = 1 + exponent + mantissa
    assert len(values) == 1 << bits
    assert len(set(values)) == (1 << bits) - 1
    assert values[: len(values) // 2] == tuple(-v for v in values[len(values) // 2 :])


@pytest.mark.parametrize(
    ("exponent", "mantissa", "dtype"),
    [(4, 3, torch.float8_e4m3fn), (5, 2, torch.float8_e5m2)],
)
def test_codes_are_the_bits_of_torch_where_it_keeps_none_for_infinity(
    exponent: int, mantissa: int, dtype: torch.dtype
) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    torchs = every.view(dtype).float()
    ours = torch.tensor(small_float(exponent, mantissa).values)
    finite = torch.isfinite(torchs)
    assert torch.equal(ours[finite], torchs[finite])
    assert int((~finite).sum()) == (2 if dtype is torch.float8_e4m3fn else 8)


def test_fp4_is_the_known_one() -> None:
    assert small_float(2, 1).values[:8] == (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_one_exponent_bit_would_be_the_symmetric_integer_grid() -> None:
    integers = Codebook(tuple(float(i) for i in range(-3, 4)))
    assert {v / 0.5 for v in (0, 0.5, 1.0, 1.5)} == {abs(v) for v in integers.values}


@pytest.mark.parametrize(
    "name", ["fp-e1m2-g64", "fp-e5m5-g64", "fp-e2m1", "fp4-g64", "fp-e8m0-row"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'fp-e2m1-g64'\?"):
        FpFormat.parse(name)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="allowed are 2 or more exponent bits"):
        FpFormat(1, 2, 64)


@pytest.mark.parametrize(("name", "bits"), [("fp-e2m1-g64", 4.25), ("fp-e3m2-g128", 6.125)])
def test_bits_per_weight(name: str, bits: float) -> None:
    assert FpFormat.parse(name).stored_bytes((512, 1024)) * 8 == bits * 512 * 1024
