"""Nested FFNs: children are prefixes, all trained in one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training import Place, token_losses
from blockwright.training.places import under_recipe
from blockwright.training.recipes.nested import Nested, NestedMatrix, at_halving
from blockwright.types import Channels
from tests.models import random_model
from tests.training.cases import at, normal, tokens, trained

WIDTH = 32
BATCH = tokens().window(0, 64).view(2, 32)


def matrix_and_reader(**options: object) -> tuple[NestedMatrix, nn.Linear]:
    """A writer of 32 channels, and what makes them in two pieces, one behind the other."""
    reader, writer = nn.Linear(4, 2 * WIDTH), nn.Linear(WIDTH, 4)
    with torch.no_grad():
        reader.weight.copy_(normal(2 * WIDTH, 4))
        reader.bias.copy_(normal(2 * WIDTH, seed=3))
        writer.weight.copy_(normal(4, WIDTH, seed=1))
    channels = Channels(writer="writer", width=WIDTH, readers={"reader": (2, False)})
    matrix = Nested(**options).matrix(writer, Place("writer", channels, {"reader": reader}))  # type: ignore[arg-type]
    assert isinstance(matrix, NestedMatrix)
    return matrix, reader


def ffn(matrix: NestedMatrix, reader: nn.Linear, x: Tensor) -> Tensor:
    gate, up = reader(x).chunk(2, dim=-1)
    outputs: Tensor = matrix(nn.functional.silu(gate) * up)
    return outputs


def test_widths_are_halved_down_to_the_format() -> None:
    matrix, _ = matrix_and_reader(format="narrow-p25")
    assert [matrix.width(halving) for halving in range(matrix.halvings + 1)] == [32, 16, 8]
    matrix, _ = matrix_and_reader(format="narrow-p75")
    assert [matrix.width(halving) for halving in range(matrix.halvings + 1)] == [32, 24]


def test_a_step_runs_the_widest_the_narrowest_and_some_between() -> None:
    recipe = Nested(format="narrow-p12", children=5)
    torch.manual_seed(0)
    drawn = [recipe.levels(3) for _ in range(50)]
    assert all(levels[0] == 3 and len(levels) == 4 for levels in drawn)
    assert {level for levels in drawn for level in levels[1:]} == {1, 2, 3}
    assert Nested(children=1).levels(3) == []
    assert Nested(children=2).levels(3) == [3]


@torch.no_grad()
def test_sorting_channels_changes_no_output_and_takes_gradients_along() -> None:
    matrix, reader = matrix_and_reader()
    x = normal(20, 4, seed=2)
    with torch.enable_grad():
        matrix.before_step(at(0))
        before = ffn(matrix, reader, x)
        before.square().sum().backward()
    score = matrix.energy_I * matrix.weight.square().sum(0)
    matrix.after_backward(at(0))
    moved = [parameter.grad.clone() for parameter in (matrix.weight, reader.weight, reader.bias)]  # type: ignore[union-attr]
    assert torch.allclose(ffn(matrix, reader, x), before, atol=1e-5)
    with torch.enable_grad():
        for parameter in (matrix.weight, reader.weight, reader.bias):
            parameter.grad = None
        ffn(matrix, reader, x).square().sum().backward()
    for parameter, found in zip((matrix.weight, reader.weight, reader.bias), moved, strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-4)
    energy = nn.functional.silu(reader(x)[:, :WIDTH]) * reader(x)[:, WIDTH:]
    again = energy.square().sum(0) * matrix.weight.square().sum(0)
    assert torch.allclose(again, score.sort(descending=True).values, rtol=1e-3)


@torch.enable_grad()
def test_the_gradient_of_a_step_is_the_mean_of_the_childrens() -> None:
    recipe = Nested(children=2, distil=False)
    model = random_model("llama")
    with under_recipe(model, recipe, BATCH) as matrices:
        recipe.loss(model, BATCH, matrices, at(1)).backward()
        together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        expected = {name: torch.zeros_like(grad) for name, grad in together.items()}
        nested = [matrix for matrix in matrices if isinstance(matrix, NestedMatrix)]
        for halving in (0, nested[0].halvings):
            model.zero_grad()
            with at_halving(nested, halving):
                token_losses(model, BATCH).mean().backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    expected[name] += parameter.grad / 2
    for name, grad in together.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-2, atol=1e-5)


@torch.enable_grad()
def test_the_widest_learns_nothing_from_its_children() -> None:
    """What is seen by the widest alone has the gradient of plain training, times 1 / children."""
    model, recipe = random_model("llama"), Nested(children=2)
    with under_recipe(model, recipe, BATCH) as matrices:
        recipe.loss(model, BATCH, matrices, at(1)).backward()
        matrix = matrices[0]
        assert isinstance(matrix, NestedMatrix)
        mine = matrix.weight.grad[:, matrix.least :].clone()  # type: ignore[index]
        model.zero_grad()
        token_losses(model, BATCH).mean().backward()
        plain = matrix.weight.grad[:, matrix.least :]  # type: ignore[index]
    torch.testing.assert_close(2 * mine, plain, rtol=1e-2, atol=1e-5)


def test_one_child_is_plain_training() -> None:
    plain, _ = trained(None, steps=3)
    mine, _ = trained("nested@children=1,sort=false", steps=3)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, mine.get_parameter(name))


def test_what_cannot_be_is_refused() -> None:
    for wrong in ("nested@format=sparse50", "nested@format=heads-p50"):
        with pytest.raises(TrainingError, match="narrower FFNs"):
            recipe_named(wrong)
    with pytest.raises(TrainingError, match="children"):
        recipe_named("nested@children=0")
