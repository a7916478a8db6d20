"""Masked refit against plain least squares."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped, exact_refit, iterative_refit, masked_refit
from blockwright.numerics.masks import keep_per_row
from tests.layers import gram, synth_layer

DAMPING = 0.01


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, H and a mask of half of every row."""
    layer = synth_layer(0, features=64, tokens=300)
    return layer.W_OI, gram(layer.X_TI), keep_per_row(layer.W_OI.abs(), 32)


def test_is_the_least_squares_solution_of_every_row(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    W, H, mask = problem
    Hd = damped(H, DAMPING).double()
    found = masked_refit(W, H, mask, DAMPING)
    root = torch.linalg.cholesky(Hd).T  # |root d|^2 = d Hd d
    for row, target, kept in zip(found, W.double(), mask, strict=True):
        best = torch.linalg.lstsq(root[:, kept], root @ target).solution
        torch.testing.assert_close(row[kept].double(), best, rtol=1e-3, atol=1e-4)
        assert (row[~kept] == 0).all()


def test_iterations_reach_the_exact_solution(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    W, H, mask = problem
    Hd = damped(H, DAMPING)
    exact, found = exact_refit(W, Hd, mask), iterative_refit(W, Hd, mask)
    errors = [quadratic_error(x - W, Hd) for x in (exact, found)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert (found[~mask] == 0).all()


def test_more_iterations_never_raise_the_error(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    W, H, mask = problem
    Hd = damped(H, DAMPING)
    errors = [
        quadratic_error(iterative_refit(W, Hd, mask, steps) - W, Hd) for steps in (0, 1, 3, 10, 30)
    ]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("refit", [exact_refit, iterative_refit])
def test_a_full_mask_gives_the_weight_back(refit: object) -> None:
    layer = synth_layer(1, features=32, tokens=20)
    W, everything = layer.W_OI, torch.ones(32, 32, dtype=torch.bool)
    assert callable(refit)
    assert torch.equal(refit(W, damped(gram(layer.X_TI), DAMPING), everything), W)


def test_a_larger_mask_never_raises_the_error(
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    W, H, _ = problem
    errors = [
        quadratic_error(
            masked_refit(W, H, keep_per_row(W.abs(), kept), DAMPING) - W, damped(H, DAMPING)
        )
        for kept in range(0, 65, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_uncorrelated_inputs_leave_the_kept_values_alone() -> None:
    W, mask = synth_layer(0, features=32).W_OI, keep_per_row(torch.rand(32, 32), 16)
    assert torch.equal(masked_refit(W, torch.eye(32), mask, DAMPING), W * mask)


@pytest.mark.parametrize("H", [torch.zeros(8, 8), torch.full((8, 8), float("nan"))])
def test_no_inputs_are_refused(H: torch.Tensor) -> None:
    mask = torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(NumericalError, match="zero or not finite"):
        masked_refit(torch.ones(2, 8), H, mask, DAMPING)


def test_a_singular_part_is_refused() -> None:
    mask = torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(NumericalError, match="raise the damping"):
        exact_refit(torch.ones(2, 8), torch.zeros(8, 8), mask)
