"""SR-STE: a mask in front, a dense gradient behind."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training.recipes.srste import Srste
from tests.training.cases import at, matrix_of, normal


def test_the_weight_is_masked_and_its_gradient_is_not() -> None:
    matrix = matrix_of(Srste(decay=0.5), normal(6, 8))
    matrix.before_step(at(0))
    x, W = normal(3, 8, seed=1), matrix.weight.detach().clone()
    mask = matrix.get_buffer("mask_OI")
    y = matrix(x)
    assert torch.equal(y, torch.nn.functional.linear(x, W * mask))
    g = normal(3, 6, seed=2)
    y.backward(g)
    with torch.no_grad():
        matrix.after_backward(at(0))
    assert matrix.weight.grad is not None
    assert torch.allclose(matrix.weight.grad, g.T @ x + 0.5 * W * ~mask, atol=1e-6)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(TrainingError, match="decay"):
        recipe_named("srste@decay=-1")
