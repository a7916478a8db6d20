"""Losses against the outputs themselves."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.losses import CHUNK_COLUMNS, quadratic_error, relative_error, row_errors
from tests.layers import gram


@pytest.mark.parametrize("in_features", [1, 24, CHUNK_COLUMNS, 2 * CHUNK_COLUMNS + 3])
def test_row_errors_are_the_mean_squared_outputs(in_features: int) -> None:
    torch.manual_seed(0)
    D, X = torch.randn(7, in_features), torch.randn(500, in_features)
    squared = (X.double() @ D.double().T).square().mean(0)
    torch.testing.assert_close(row_errors(D, gram(X)).double(), squared, rtol=1e-5, atol=1e-5)
    assert quadratic_error(D, gram(X)) == pytest.approx(squared.sum().item(), rel=1e-5)


def test_errors_are_never_negative_where_only_rounding_is_left() -> None:
    torch.manual_seed(0)
    X = torch.randn(4, 64)
    _, _, V = torch.linalg.svd(X, full_matrices=True)
    unseen = torch.randn(100, 60) @ V[4:]
    errors = row_errors(unseen, gram(X))
    assert (errors >= 0).all()
    assert errors.max() < 1e-4


def test_relative_error_is_one_for_zeros_and_zero_for_nothing_changed() -> None:
    torch.manual_seed(0)
    W, H = torch.randn(5, 8), gram(torch.randn(50, 8))
    assert relative_error(-W, W, H) == pytest.approx(1)
    assert relative_error(torch.zeros(5, 8), W, H) == 0
    assert relative_error(torch.zeros(5, 8), torch.zeros(5, 8), H) == 0
