"""ADMM: its limits, and projections other than masks."""

from __future__ import annotations

from itertools import islice

import torch

from blockwright.numerics.admm import admm
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped
from tests.layers import gram, synth_layer

LAYER = synth_layer(0, features=48, tokens=300)
HD = damped(gram(LAYER.X_TI), 0.01)


def nearest(W: torch.Tensor, step: float = 0.05) -> torch.Tensor:
    return (W / step).round() * step


def test_without_a_constraint_the_weight_stays() -> None:
    for Z in islice(admm(LAYER.W_OI, HD, torch.clone, 0.3), 5):
        torch.testing.assert_close(Z, LAYER.W_OI, rtol=1e-4, atol=1e-5)


def test_the_first_point_is_the_projection_of_the_weight_and_a_strong_pull_stays_there() -> None:
    direct = nearest(LAYER.W_OI)
    weak, strong = admm(LAYER.W_OI, HD, nearest, 0.3), admm(LAYER.W_OI, HD, nearest, 1e4)
    assert torch.equal(next(weak), direct)
    for Z in islice(strong, 10):
        assert ((Z - direct).abs() > 1e-6).float().mean() < 1e-3


def test_another_projection_gains_too() -> None:
    """A rank: the loop comes near the best weight of that rank."""

    def low_rank(T: torch.Tensor) -> torch.Tensor:
        U, S, V = torch.linalg.svd(T, full_matrices=False)
        thin: torch.Tensor = U[:, :12] * S[:12] @ V[:12]
        return thin

    errors = [
        quadratic_error(Z - LAYER.W_OI, HD) for Z in islice(admm(LAYER.W_OI, HD, low_rank, 0.3), 30)
    ]
    assert errors[-1] < 0.6 * errors[0]
