"""MaskSparsity: a pull on the channels that will go, on no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training import Place
from blockwright.training.recipes.masksparsity import GatedMatrix, MaskSparsity
from blockwright.types import Channels
from tests.training.cases import at, normal

WIDTH = 16


@torch.enable_grad()
def gated(**options: object) -> tuple[GatedMatrix, nn.Linear]:
    """A writer of 16 channels after its first step, and what makes them."""
    reader, writer = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
    with torch.no_grad():
        reader.weight.copy_(normal(WIDTH, 4))
        writer.weight.copy_(normal(4, WIDTH, seed=1))
    channels = Channels(writer="writer", width=WIDTH, readers={"reader": (1, False)})
    recipe = MaskSparsity(format="narrow-p50", **options)  # type: ignore[arg-type]
    matrix = recipe.matrix(writer, Place("writer", channels, {"reader": reader}))
    assert isinstance(matrix, GatedMatrix)
    matrix.before_step(at(0))
    matrix(inputs()).sum().backward()
    with torch.no_grad():
        matrix.after_backward(at(0))
    return matrix, reader


def inputs() -> Tensor:
    return normal(32, WIDTH, seed=2) * torch.linspace(0.1, 2, WIDTH)


@torch.no_grad()
def test_the_channels_of_least_energy_are_chosen() -> None:
    matrix, _ = gated()
    energy = inputs().square().sum(0) * matrix.weight.square().sum(0)
    assert matrix.removed_I.nonzero().flatten().tolist() == sorted(energy.argsort()[:8].tolist())
    assert torch.allclose(matrix.energy_I, inputs().square().sum(0))


@torch.no_grad()
def test_kept_channels_feel_no_pull_and_the_others_reach_zero() -> None:
    matrix, _ = gated()
    for step in range(60):
        matrix.after_step(at(step), {})
    assert torch.equal(matrix.gate_I, (~matrix.removed_I).float())


@torch.no_grad()
def test_a_pull_on_all_channels_cuts_what_it_made_smallest() -> None:
    matrix, _ = gated(only=False)
    matrix.gate_I.copy_(torch.linspace(2, 1, WIDTH))
    matrix.after_step(at(1), {})
    pulled = torch.linspace(2, 1, WIDTH) - matrix.gate_I
    assert torch.allclose(pulled, torch.full((WIDTH,), 1.5 / 2 / 60), atol=1e-6)
    matrix.before_step(at(60))
    assert not matrix.gate_I[8:].any()
    assert matrix.gate_I[:8].all()


@torch.no_grad()
def test_folding_is_exact() -> None:
    matrix, _ = gated()
    matrix.gate_I.copy_(torch.rand(WIDTH, generator=torch.Generator().manual_seed(0)))
    matrix.cut()
    before = matrix(inputs())
    matrix.finish()
    assert torch.equal(nn.functional.linear(inputs(), matrix.weight, matrix.bias), before)


@torch.no_grad()
def test_the_cut_changes_outputs_by_no_more_than_its_bound() -> None:
    matrix, _ = gated()
    matrix.gate_I.mul_(0.3)
    removed, a = matrix.removed_I, inputs()
    sizes = matrix.weight.norm(dim=0) * matrix.gate_I.abs()
    bound = float((sizes * a.abs().amax(0))[removed].sum())
    before = matrix(a)
    matrix.cut()
    moved = (matrix(a) - before).norm(dim=1)
    assert 0 < float(moved.max()) <= bound


@torch.no_grad()
def test_rows_of_channels_that_are_gone_are_silent() -> None:
    matrix, reader = gated()
    matrix.finish()
    silent = ~reader.weight.any(1) & (reader.bias == 0)
    assert torch.equal(silent, matrix.removed_I)
    assert torch.equal(~matrix.weight.any(0), matrix.removed_I)


def test_after_the_cut_factors_that_are_gone_have_no_gradient() -> None:
    matrix, _ = gated()
    with torch.no_grad():
        matrix.before_step(at(60))
    matrix(inputs()).sum().backward()
    with torch.no_grad():
        matrix.after_backward(at(60))
    assert matrix.gate_I.grad is not None
    assert not matrix.gate_I.grad[matrix.removed_I].any()


def test_what_cannot_be_is_refused() -> None:
    for wrong in ("masksparsity@format=sparse50", "masksparsity@format=narrow-p75+int4-g64"):
        with pytest.raises(TrainingError, match="narrower FFNs"):
            recipe_named(wrong)
    with pytest.raises(TrainingError, match="pull"):
        recipe_named("masksparsity@pull=1")
