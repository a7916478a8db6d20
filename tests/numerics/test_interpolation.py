"""Rows that all others are mixtures of."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.interpolation import mix_rows, pivot_rows, places


def low_rank(rows: int = 30, columns: int = 20, rank: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random)


def test_a_matrix_of_low_rank_is_its_pivots_and_their_mixtures() -> None:
    A = low_rank()
    kept = pivot_rows(A)[:6]
    mixing = mix_rows(A, kept)
    again = torch.cat([A[kept], mixing @ A[kept]])[places(len(A), kept)]
    torch.testing.assert_close(again, A, rtol=1e-4, atol=1e-5)
    assert mixing.abs().max() < 2


def test_the_first_pivot_is_the_longest_row_and_the_next_lies_farthest_from_it() -> None:
    A = torch.tensor([[3.0, 0.0, 0.0], [2.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    assert pivot_rows(A)[:3].tolist() == [0, 3, 2]


def test_mixtures_are_the_least_squares_ones() -> None:
    A = torch.randn(12, 9, generator=torch.Generator().manual_seed(1)).double()
    kept = torch.tensor([7, 1, 4])
    left = A - torch.cat([A[kept], mix_rows(A, kept).double() @ A[kept]])[places(12, kept)]
    assert (left @ A[kept].T).abs().max() < 1e-5
    assert left[kept].abs().max() == 0


def test_places_say_where_each_row_stands() -> None:
    assert places(5, torch.tensor([3, 0])).tolist() == [1, 2, 3, 0, 4]


def test_what_is_not_finite_has_no_pivots() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        pivot_rows(torch.tensor([[float("nan"), 1.0]]))
