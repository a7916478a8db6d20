"""Training against a Gram, without data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.losses import quadratic_error
from blockwright.tuning import gram_error, tune_on_gram

OUT, IN = 6, 10


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(seed: int) -> Tensor:
    x_TI = normal(seed, 64, IN)
    return x_TI.T @ x_TI / 64


W, H = normal(0, OUT, IN), gram(1)
CODES = (2 * W).round()


def test_the_error_is_the_quadratic_one_and_its_gradient_is_2_d_h() -> None:
    D = normal(2, OUT, IN).requires_grad_()
    error = gram_error(D, H)
    assert error.item() == pytest.approx(quadratic_error(D.detach(), H), rel=1e-5)
    (3 * error).backward()
    assert D.grad is not None
    torch.testing.assert_close(D.grad, 6 * D.detach() @ H)


def test_row_scales_reach_the_least_squares_solution() -> None:
    """s = <W, C>_H / <C, C>_H, row by row."""
    scale = torch.full((OUT, 1), 0.2, requires_grad=True)
    best = tune_on_gram(
        lambda: scale * CODES, [(scale, 0.02)], W, H, unit=quadratic_error(W, H), steps=400
    )
    expected = ((W @ H) * CODES).sum(1) / ((CODES @ H) * CODES).sum(1)
    torch.testing.assert_close(scale.detach()[:, 0], expected, rtol=2e-3, atol=1e-4)
    assert best == pytest.approx(quadratic_error(expected[:, None] * CODES - W, H), rel=1e-3)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 30.0])
def test_the_state_that_is_left_is_never_worse_by_the_held_gram(rate: float) -> None:
    held = gram(7)
    scale = torch.full((OUT, 1), 0.5, requires_grad=True)
    start = quadratic_error(0.5 * CODES - W, held)
    best = tune_on_gram(
        lambda: scale * CODES, [(scale, rate)], W, H, unit=1.0, steps=20, held_II=held
    )
    assert best <= start * (1 + 1e-6)
    assert quadratic_error(scale.detach() * CODES - W, held) == pytest.approx(best, rel=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_best_state() -> None:
    scale = torch.full((OUT, 1), 0.2, requires_grad=True)
    start = quadratic_error(0.2 * CODES - W, H)
    best = tune_on_gram(
        lambda: scale * CODES,
        [(scale, 0.02)],
        W,
        H,
        unit=1.0,
        steps=100,
        checks=100,
        extra_loss=lambda progress: torch.tensor(math.nan if progress > 0.5 else 0.0),
    )
    assert best < start
    assert torch.isfinite(scale).all()


def test_a_start_that_is_not_finite_is_an_error() -> None:
    scale = torch.full((OUT, 1), math.nan, requires_grad=True)
    with pytest.raises(NumericalError, match="finite"):
        tune_on_gram(lambda: scale * CODES, [(scale, 0.02)], W, H, unit=1.0, steps=2)
