"""Dyadic numbers: integers against real arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.dyadic import MOST_SHIFT, add_dyadic, dyadic, requantize, value_of


def test_multipliers_are_within_half_of_their_last_bit() -> None:
    M = torch.logspace(-9, 9, 500, dtype=torch.float64)
    for bits in (31, 15, 7):
        near = M[M.log2() < bits - 1]
        m, c = dyadic(near, bits)
        assert m.dtype == torch.int32
        assert c.dtype == torch.int8
        assert ((value_of(m, c) / near - 1).abs() <= 2.0**-bits).all()


def test_a_fraction_that_rounds_up_to_one_carries() -> None:
    M = torch.tensor([1 - 2.0**-40, 2 - 2.0**-40, 1.0, 0.5], dtype=torch.float64)
    m, c = dyadic(M)
    assert (m > 0).all()
    assert value_of(m, c).tolist() == [1.0, 2.0, 1.0, 0.5]


def test_requantizing_is_exact_with_halves_up_and_for_negative_sums() -> None:
    sums = torch.tensor([-7, -6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6, 7, 2**31 - 1, -(2**31)])
    for M in (0.25, 0.5, 1.0, 3.0, 0.3, 1e-9):
        m, c = dyadic(torch.tensor([M], dtype=torch.float64))
        exact = Fraction(int(m), 2 ** int(c))
        expected = [floor(int(a) * exact + Fraction(1, 2)) for a in sums]
        assert requantize(sums, m, c).tolist() == expected


def test_numbers_too_small_to_matter_give_zero_and_too_large_ones_are_refused() -> None:
    m, c = dyadic(torch.tensor([1e-30], dtype=torch.float64))
    assert int(c) == MOST_SHIFT
    assert requantize(torch.tensor([2**31 - 1]), m, c).tolist() == [0]
    for M in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(NumericalError, match="positive, finite"):
            dyadic(torch.tensor([M]))
    with pytest.raises(NumericalError, match=r"below 2\^31"):
        dyadic(torch.tensor([2.0**31]))


def test_branches_are_added_in_the_units_of_the_output() -> None:
    first, second = torch.tensor([100, -50]), torch.tensor([7, 9])
    by = [dyadic(torch.tensor(M, dtype=torch.float64)) for M in (0.125, 2.0)]
    assert add_dyadic(first, by[0], second, by[1]).tolist() == [13 + 14, -6 + 18]
