"""Block floating point: the formulas, every edge of the exponent, and K-sort."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from blockwright.numerics.block_floating_point import (
    BITS,
    LEAST_EXPONENT,
    decode,
    encode,
    fit_exponents,
    order_by_norm,
    round_to_bfp,
    search_exponents,
    step_sizes,
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_group(x: list[float], bits: int) -> list[float]:
    """The definition, number by number, in Python's floats."""
    absmax = max(map(abs, x))
    step = 2.0 ** (math.floor(math.log2(absmax)) + 1 - (bits - 1))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [min(max(round(value / step), low), high) * step for value in x]


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_the_definition(bits: int) -> None:
    x = values(3, 4, 32) * torch.logspace(-8, 8, 12).view(3, 4, 1)
    got = round_to_bfp(x, bits, 16)
    expected = [one_group(group, bits) for group in x.reshape(-1, 16).tolist()]
    assert got.reshape(-1, 16).tolist() == expected


@pytest.mark.parametrize("bits", BITS)
def test_steps_are_exact_powers_of_two(bits: int) -> None:
    exponents = torch.arange(LEAST_EXPONENT, 120, dtype=torch.int8)
    assert step_sizes(exponents).tolist() == [2.0**e for e in range(LEAST_EXPONENT, 120)]
    powers = step_sizes(exponents[bits:-bits])
    assert torch.equal(round_to_bfp(powers.view(-1, 1), bits, 1).view(-1), powers)


@pytest.mark.parametrize("bits", BITS)
def test_decoded_values_have_the_same_mantissas_again(bits: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = values(5, 64).to(dtype)
        exponents = fit_exponents(x, bits, 32)
        mantissas = encode(x, exponents, bits)
        assert round_to_bfp(x, bits, 32).dtype == dtype
        once = decode(mantissas, exponents, dtype)
        assert torch.equal(encode(once, exponents, bits), mantissas)
        assert torch.equal(round_to_bfp(once, bits, 32), once)


@pytest.mark.parametrize("bits", BITS)
def test_the_most_negative_mantissa_is_used(bits: int) -> None:
    half = 1 << (bits - 1)
    group = torch.tensor([-half, half - 1, 1, 0]) / 8
    assert step_sizes(fit_exponents(group, bits)).item() == 1 / 8
    assert torch.equal(round_to_bfp(group, bits), group)
    assert step_sizes(fit_exponents(group.neg(), bits)).item() == 1 / 4


@pytest.mark.parametrize(
    "group", [[0.0, -0.0], [1e-45, -1e-40], [1.7e38, -1.7e38], [0.0, 3.4e38], [2.0**-126, 0.0]]
)
@pytest.mark.parametrize("bits", BITS)
def test_extreme_groups_stay_finite(group: list[float], bits: int) -> None:
    x = torch.tensor(group)
    got = round_to_bfp(x, bits)
    assert torch.isfinite(got).all()
    largest = float(x.abs().max())
    if largest < 2.0**127:
        assert (got - x).abs().max() <= max(largest / 2 ** (bits - 2), 2.0**-126)
    if not x.any():
        assert not got.any()


@pytest.mark.parametrize("bits", BITS)
def test_errors_are_at_most_half_a_step_but_at_the_clipped_end(bits: int) -> None:
    x = values(8, 128)
    exponents = fit_exponents(x, bits, 64)
    mantissas = encode(x, exponents, bits)
    error = (decode(mantissas, exponents) - x).abs().view(8, 2, 64)
    steps = step_sizes(exponents).unsqueeze(-1)
    clipped = mantissas.view(8, 2, 64) == (1 << (bits - 1)) - 1
    assert (error <= torch.where(clipped, steps, steps / 2)).all()


@pytest.mark.parametrize("bits", BITS)
def test_searched_exponents_are_never_worse(bits: int) -> None:
    x, importance = values(6, 128), values(128, seed=1).square()

    def error(exponents: Tensor) -> Tensor:
        D = decode(encode(x, exponents, bits), exponents) - x
        return (D.square() * importance).view(6, 4, 32).sum(-1)

    fitted, searched = fit_exponents(x, bits, 32), search_exponents(x, bits, 32, importance)
    assert (error(searched) <= error(fitted)).all()
    if bits == 2:
        assert (searched < fitted).any()


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide 48"):
        fit_exponents(values(2, 48), 4, 32)


def test_sorting_is_by_norm_and_stable() -> None:
    order = order_by_norm(torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 1.0]]))
    assert order.tolist() == [[1, 2, 3, 0], [3, 0, 1, 2]]


def test_sorted_channels_lose_less_where_outliers_are_scattered() -> None:
    keys = values(512, 128)
    keys[:, torch.arange(5, 128, 21)] *= 12
    order = order_by_norm(keys.norm(dim=0))
    back = torch.argsort(order)

    def error(keys_sorted: Tensor, group_size: int) -> float:
        return float((round_to_bfp(keys_sorted, 4, group_size) - keys_sorted).norm())

    for group_size, most in ((32, 0.9), (64, 0.95)):
        assert error(keys[:, order], group_size) < most * error(keys, group_size)
    unsorted, rounded = round_to_bfp(keys, 4, 128), round_to_bfp(keys[:, order], 4, 128)
    assert torch.equal(rounded[:, back], unsorted)
