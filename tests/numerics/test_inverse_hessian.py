"""The upper factor of the inverse Hessian against the inverse in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.inverse_hessian import TRIANGLE, invert_lower, upper_factor
from tests.layers import gram


def random_gram(size: int, tokens: int | None = None) -> Tensor:
    random = torch.Generator().manual_seed(size)
    X = torch.randn(tokens or 2 * size + 8, size, generator=random)
    return gram(X * torch.exp(torch.randn(size, generator=random)))


def damped(H: Tensor, damping: float) -> Tensor:
    """Hd in float64."""
    return H.double() + damping * H.double().diagonal().mean() * torch.eye(len(H))


@pytest.mark.parametrize("size", [1, 2, 3, 64, TRIANGLE, TRIANGLE + 1, 2 * TRIANGLE + 5])
def test_factor_times_itself_is_the_inverse(size: int) -> None:
    H = random_gram(size)
    U = upper_factor(H, 0.01)
    assert torch.equal(U, U.triu())
    assert (U.diagonal() > 0).all()
    product = U.double().T @ U.double() @ damped(H, 0.01)
    torch.testing.assert_close(product, torch.eye(size, dtype=torch.float64), rtol=0, atol=2e-4)


def test_order_factors_the_permuted_gram() -> None:
    H = random_gram(150)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        upper_factor(H, 0.01, order=order), upper_factor(H[order][:, order].contiguous(), 0.01)
    )


def test_input_is_unchanged() -> None:
    H = random_gram(40)
    before = H.clone()
    upper_factor(H, 0.01)
    assert torch.equal(H, before)


def test_inputs_that_never_fired_change_nothing_for_the_others() -> None:
    H = random_gram(30)
    alive = torch.tensor([i for i in range(33) if i not in (0, 7, 32)])
    wider = torch.zeros(33, 33)
    wider[alive[:, None], alive] = H
    U = upper_factor(wider, 0.01)
    torch.testing.assert_close(U[alive[:, None], alive], upper_factor(H, 0.01))
    for dead in (0, 7, 32):
        assert torch.equal(U[dead], torch.eye(33)[dead])
        assert torch.equal(U[:, dead], torch.eye(33)[dead])


def test_no_input_fired_gives_the_identity() -> None:
    assert torch.equal(upper_factor(torch.zeros(5, 5), 0.01), torch.eye(5))


def test_fewer_tokens_than_inputs_is_enough() -> None:
    assert torch.isfinite(upper_factor(random_gram(64, tokens=3), 0.01)).all()


def test_damping_grows_tenfold_until_the_gram_is_positive_definite() -> None:
    H = torch.tensor([[1.0, 1.5], [1.5, 1.0]])  # eigenvalues 2.5 and -0.5
    torch.testing.assert_close(upper_factor(H, 0.01), upper_factor(H, 1.0))


def test_float64_is_the_last_resort() -> None:
    H = torch.ones(2, 2)  # in float32, 1 + 1e-8 = 1 and the second pivot is 0
    U = upper_factor(H, 1e-12)
    assert U[0, 0] == pytest.approx((2e-8) ** -0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("H", "reason"),
    [
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "NaN or infinity"),
        (torch.tensor([[float("inf"), 0.0], [0.0, 1.0]]), "NaN or infinity"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "negative diagonal"),
        (torch.tensor([[1.0, 1e3], [1e3, 1.0]]), "not positive definite"),
    ],
)
def test_what_cannot_be_factored_says_why(H: Tensor, reason: str) -> None:
    with pytest.raises(NumericalError, match=reason):
        upper_factor(H, 0.01)


def test_lower_triangles_are_inverted_in_place() -> None:
    L = torch.linalg.cholesky(damped(random_gram(301), 0.1))
    inverse = L.clone()
    invert_lower(inverse)
    torch.testing.assert_close(inverse @ L, torch.eye(301, dtype=torch.float64))
    assert torch.equal(inverse, inverse.tril())
