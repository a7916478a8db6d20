"""BDWP: three products, two masks."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import FormatError, TrainingError
from blockwright.registry import recipe_named
from blockwright.training.recipes.bdwp import Bdwp, BdwpMatrix, both_ways, ideal_step_speedup
from tests.training.cases import at, matrix_of, normal


def bdwp(**options: object) -> BdwpMatrix:
    matrix = matrix_of(Bdwp(**options), normal(12, 8), bias=True)  # type: ignore[arg-type]
    assert isinstance(matrix, BdwpMatrix)
    matrix.before_step(at(0))
    return matrix


def test_masks_are_n_of_m_along_what_each_product_sums_over() -> None:
    matrix = bdwp(format="sparse1of4")
    assert (matrix.mask_OI.view(12, 2, 4).sum(2) == 1).all()
    assert (matrix.backward_OI.T.reshape(8, 3, 4).sum(2) == 1).all()
    W = matrix.weight.detach().abs()
    largest = W.view(12, 2, 4).amax(2)
    assert torch.equal((W * matrix.mask_OI).view(12, 2, 4).amax(2), largest)
    assert torch.equal((W * matrix.backward_OI).view(3, 4, 8).amax(1), W.view(3, 4, 8).amax(1))


def test_its_three_products_are_the_papers() -> None:
    matrix = bdwp()
    x = normal(2, 5, 8, seed=1).requires_grad_()
    g = normal(2, 5, 12, seed=2)
    y = matrix(x)
    y.backward(g)
    W, x_TI, g_TO = matrix.weight.detach(), x.detach().view(10, 8), g.view(10, 12)
    assert matrix.bias is not None
    assert torch.allclose(y.view(10, 12), x_TI @ (W * matrix.mask_OI).T + matrix.bias)
    assert x.grad is not None
    assert torch.allclose(x.grad.view(10, 8), g_TO @ (W * matrix.backward_OI))
    assert matrix.weight.grad is not None
    assert torch.allclose(matrix.weight.grad, g_TO.T @ x_TI, atol=1e-6)
    assert torch.allclose(matrix.bias.grad, g_TO.sum(0), atol=1e-6)  # type: ignore[arg-type]


def test_with_full_masks_it_is_the_dense_product() -> None:
    W, x = normal(12, 8).requires_grad_(), normal(5, 8, seed=1).requires_grad_()
    full = torch.ones(12, 8, dtype=torch.bool)
    results = []
    for y in (both_ways(x, W, full, full), torch.nn.functional.linear(x, W)):
        found = torch.autograd.grad(y, (x, W), normal(5, 12, seed=2))
        results.append((y, *found))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_under_autocast_products_are_bfloat16_and_gradients_those_of_the_parameters() -> None:
    matrix = bdwp()
    x = normal(5, 8, seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = matrix(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert matrix.weight.grad is not None
    assert matrix.weight.grad.dtype == torch.float32


def test_masks_are_chosen_anew_every_refresh_steps() -> None:
    matrix = bdwp(refresh=3)
    before = matrix.mask_OI.clone()
    with torch.no_grad():
        matrix.weight.copy_(normal(12, 8, seed=5))
    matrix.before_step(at(2))
    assert torch.equal(matrix.mask_OI, before)
    matrix.before_step(at(3))
    assert not torch.equal(matrix.mask_OI, before)


def test_the_decay_pulls_what_is_pruned() -> None:
    matrix = bdwp(decay=0.5)
    matrix.weight.grad = torch.zeros(12, 8)
    with torch.no_grad():
        matrix.after_backward(at(0))
    assert torch.equal(matrix.weight.grad, 0.5 * matrix.weight * ~matrix.mask_OI)


def test_the_speedup_is_a_count_of_products() -> None:
    assert ideal_step_speedup(2, 8) == 2.0
    assert ideal_step_speedup(2, 4) == 1.5
    assert ideal_step_speedup(4, 4) == 1.0


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        "bdwp@format=sparse50",
        "bdwp@format=sparse2of4+int4",
        "bdwp@format=panel16x4-50",
    ):
        with pytest.raises(TrainingError, match="allowed"):
            recipe_named(wrong)
    with pytest.raises(TrainingError, match="refresh 0"):
        recipe_named("bdwp@refresh=0")
    with pytest.raises(FormatError, match="layer"):
        matrix_of(Bdwp(), normal(12, 6))
    with pytest.raises(FormatError, match="backward"):
        matrix_of(Bdwp(), normal(6, 12))
