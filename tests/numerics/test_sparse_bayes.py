"""Joint switches of rows and columns: closed forms on tiny cases."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.sparse_bayes import (
    alternating,
    joint_support,
    leading_pair,
    posterior,
)


def case() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    X = torch.randn(30, 6, generator=random, dtype=torch.float64)
    W = torch.randn(4, 6, generator=random, dtype=torch.float64)
    H = X.T @ X / 30
    return W @ H, H


def test_the_posterior_is_that_of_every_row_by_itself() -> None:
    b, H = case()
    rows, columns = torch.tensor([0.5, 1, 2, 4]).double(), torch.linspace(0.2, 3, 6).double()
    mean, variance = posterior(b, H, 7.0, rows, columns)
    for o in range(4):
        Sigma = torch.linalg.inv(7.0 * H + torch.diag(1 / (rows[o] * columns)))
        torch.testing.assert_close(mean[o], 7.0 * Sigma @ b[o])
        torch.testing.assert_close(variance[o], Sigma.diagonal())


def test_a_product_of_switches_is_found_at_once() -> None:
    rows, columns = torch.tensor([1.0, 4, 9]).double(), torch.tensor([0.5, 1.5, 1]).double()
    energy = rows[:, None] * columns
    for found in (leading_pair(energy), alternating(energy, torch.ones(3), torch.ones(3))):
        torch.testing.assert_close(found[0][:, None] * found[1], energy)
        assert float(found[1].mean()) == pytest.approx(1)


@pytest.mark.parametrize("rule", ["alternating", "svd"])
def test_columns_that_are_not_there_are_switched_off(rule: str) -> None:
    random = torch.Generator().manual_seed(1)
    X = torch.randn(40, 12, generator=random, dtype=torch.float64)
    W = torch.randn(8, 12, generator=random, dtype=torch.float64)
    W[:, 5:] = 0
    Y = X @ W.T + 0.1 * torch.randn(40, 8, generator=random, dtype=torch.float64)
    found = joint_support(Y.T @ X / 40, X.T @ X / 40, 40 / 0.01, rule=rule)  # type: ignore[arg-type]
    assert found.columns_I[:5].min() > 20 * found.columns_I[5:].max()
    assert (found.mean_OI - W).norm() < 0.1 * W.norm()


def test_bad_input_is_refused() -> None:
    b, H = case()
    with pytest.raises(NumericalError, match="NaN"):
        joint_support(b * float("nan"), H, 1.0)
    with pytest.raises(ValueError, match="alternating, svd"):
        joint_support(b, H, 1.0, rule="mean")  # type: ignore[arg-type]
