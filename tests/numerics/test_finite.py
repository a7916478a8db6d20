"""NaN and infinity are found wherever they are."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.finite import all_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17, 34])
def test_one_bad_value_is_found(value: float, place: int) -> None:
    values = torch.randn(5, 7)
    assert all_finite(values)
    values.view(-1)[place] = value
    assert not all_finite(values)


def test_the_largest_numbers_and_no_numbers_are_finite() -> None:
    assert all_finite(torch.full((9,), torch.finfo(torch.float32).max))
    assert all_finite(torch.empty(0, 3))
