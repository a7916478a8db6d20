"""Sparse-IFT: wider, sparser, moving masks."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training.places import under_recipe
from blockwright.training.recipes.sparseift import MovingMask, SparseIft, move
from tests.models import HIDDEN, INNER, random_model
from tests.training.cases import at, matrix_of, normal, tokens


def test_a_move_drops_the_smallest_and_grows_the_steepest() -> None:
    W = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    gradient = torch.tensor([[0.0, 0.0, 0.0, 9.0, 1.0, -5.0, 2.0, 3.0]])
    moved = move(W != 0, W, gradient, 0.5)
    assert moved[0].nonzero().flatten().tolist() == [0, 1, 5, 7]


@torch.no_grad()
def test_masks_move_when_they_should_and_grown_weights_begin_at_zero() -> None:
    recipe = SparseIft(every=10)
    matrix = matrix_of(recipe, normal(6, 20))
    assert isinstance(matrix, MovingMask)
    matrix.before_step(at(0))
    first = matrix.mask_OI.clone()
    assert (first.sum(1) == 10).all()
    for step, expected in ((1, False), (10, True), (75, False), (80, False)):
        before = matrix.mask_OI.clone()
        gradient = normal(6, 20, seed=step)
        matrix.weight.grad = gradient.clone()
        matrix.after_backward(at(step))
        assert bool((matrix.mask_OI != before).any()) is expected
        assert torch.equal(matrix.weight.grad, gradient * matrix.mask_OI)
        grown = matrix.mask_OI & ~before
        assert not matrix.weight[grown].any()
        matrix.after_step(at(step), {})
        assert (matrix.mask_OI.sum(1) == 10).all()
        assert not matrix.weight[~matrix.mask_OI].any()


def test_the_share_falls_as_a_cosine() -> None:
    recipe = SparseIft(share=0.4, until=0.5)
    assert [recipe.moved_share(at(step)) for step in (0, 25, 50)] == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize(("format", "factor"), [("sparse50", 2), ("sparse70", 10 / 3)])
def test_a_wider_ffn_multiplies_as_often_as_the_dense_one(format: str, factor: float) -> None:
    recipe = recipe_named(f"sparseift@format={format}")
    width = recipe.inner_width(INNER)
    assert width == pytest.approx(INNER * factor, abs=4)
    model = random_model("llama", intermediate_size=width)
    probe = tokens().window(0, 64).unsqueeze(0)
    with under_recipe(model, recipe, probe) as matrices, torch.no_grad():
        for matrix in matrices:
            matrix.before_step(at(0))
        assert len(matrices) == 9
        products = sum(int(matrix.weight.count_nonzero()) for matrix in matrices)
    assert products == pytest.approx(9 * HIDDEN * INNER, rel=0.03)


def test_patterns_and_options_out_of_range_are_refused() -> None:
    for wrong in ("sparse2of4", "panel32-80"):
        with pytest.raises(TrainingError, match="anywhere in a row"):
            recipe_named(f"sparseift@format={wrong}")
    with pytest.raises(TrainingError, match="every 0"):
        recipe_named("sparseift@every=0")
