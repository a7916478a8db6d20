"""Weighted SVD against the plain SVD of W C, H = C C^T."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.weighted_svd import balanced_factors, weighted_svd

SHAPES = [(24, 40), (40, 24), (32, 32), (1, 8), (8, 1)]


def problem(shape: tuple[int, int], samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(shape[0])
    W = torch.randn(shape, generator=random)
    mixing = torch.randn(shape[1], shape[1], generator=random)
    X = torch.randn(samples, shape[1], generator=random) @ mixing
    return W, X.T @ X / samples


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_whitened_svd_at_every_rank(shape: tuple[int, int]) -> None:
    W, H = problem(shape)
    C = torch.linalg.cholesky(H.double())
    U, S, _ = torch.linalg.svd(W.double() @ C, full_matrices=False)
    found = weighted_svd(W, H)
    torch.testing.assert_close(found.energy_K, S.square(), rtol=1e-5, atol=1e-5)
    for rank in range(1, min(shape) + 1):
        left, right = found.factors(rank)
        expected = U[:, :rank] @ U[:, :rank].T @ W.double()
        torch.testing.assert_close((left @ right).double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_the_energy_left_out(shape: tuple[int, int]) -> None:
    W, H = problem(shape)
    found = weighted_svd(W, H)
    for rank in range(min(shape)):
        left, right = found.factors(rank)
        assert quadratic_error(left @ right - W, H) == pytest.approx(found.error(rank), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 5])
def test_full_rank_is_the_weight_whatever_the_inputs(shape: tuple[int, int], samples: int) -> None:
    W, H = problem(shape, samples)
    left, right = weighted_svd(W, H).factors(min(shape))
    torch.testing.assert_close(left @ right, W, rtol=1e-5, atol=1e-5)
    assert weighted_svd(W, torch.zeros_like(H)).error(0) == 0


def test_balanced_factors_have_equal_norms_and_the_same_product() -> None:
    W, H = problem((24, 40))
    left, right = weighted_svd(W, H).factors(9)
    right[3] = 0
    a, b = balanced_factors(left, right)
    torch.testing.assert_close(a @ b, left @ right)
    alive = torch.arange(9) != 3
    torch.testing.assert_close(a.norm(dim=0)[alive], b.norm(dim=1)[alive])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    W, H = problem((4, 4))
    with pytest.raises(NumericalError, match="NaN or infinity"):
        weighted_svd(torch.full_like(W, value), H)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        weighted_svd(W, H * value)
