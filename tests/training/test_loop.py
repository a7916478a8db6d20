"""The loop: plain training, resuming, refusing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.training import (
    Moment,
    Place,
    TokenStream,
    TrainedMatrix,
    TrainingRecipe,
    mean_loss,
    token_losses,
    train,
)
from tests.models import random_model
from tests.training.cases import settings, tokens, trained


def test_training_lowers_the_loss() -> None:
    held = tokens(seed=7).window(0, 512)
    model, log = trained(None, steps=40, checks=5)
    assert mean_loss(model, held, 32, 128) < mean_loss(random_model("llama"), held, 32, 128) - 0.1
    assert [entry["step"] for entry in log] == [8, 16, 24, 32, 40]
    assert not model.training


def test_losses_are_those_of_the_next_token() -> None:
    model = random_model("llama")
    batch = tokens().window(0, 64).view(2, 32)
    with torch.no_grad():
        found = token_losses(model, batch)
        expected = model(batch).logits[:, :-1].log_softmax(-1)
    picked = expected.gather(-1, batch[:, 1:, None]).flatten()
    assert torch.allclose(found, -picked, atol=0.2)  # logits are bfloat16
    assert found.shape == (62,)
    assert mean_loss(model, batch.flatten(), 32, 32) == pytest.approx(float(found.mean()), abs=1e-5)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = random_model("llama")
    torch.manual_seed(5)
    train(model, tokens(), settings(steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    trained("srste", steps=2, checkpoint=checkpoint)
    for recipe, rate in (("bdwp", 3e-3), ("srste", 1e-3)):
        with pytest.raises(TrainingError, match="another recipe, text or other settings"):
            trained(recipe, checkpoint=checkpoint, steps=2, learning_rate=rate)
    other = TokenStream(tokens().documents, 9)
    with pytest.raises(TrainingError, match="another recipe, text"):
        train(random_model("llama"), other, settings(steps=2), checkpoint=checkpoint)


class Spy(TrainedMatrix):
    """Notes what it is told."""

    heard: ClassVar[list[str]] = []

    def before_step(self, moment: Moment) -> None:
        self.heard.append(f"before {moment.step}")

    def after_backward(self, moment: Moment) -> None:
        assert self.weight.grad is not None
        self.heard.append("backward")

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        assert {tensor.shape for tensor in remembered.values()} == {self.weight.shape}
        self.heard.append(" ".join(sorted(remembered)))

    def finish(self) -> None:
        self.weight.zero_()
        self.heard.append("finish")


@dataclass(frozen=True, kw_only=True)
class Spying(TrainingRecipe):
    paper: ClassVar[str] = "none"
    format: str = "sparse50"

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return Spy(linear, place)


def test_matrices_are_told_at_every_place_of_a_step() -> None:
    model = random_model("llama")
    train(model, tokens(), settings(steps=2), recipe=Spying(), only="*layers.1.mlp.up_proj")
    step = ["backward", "exp_avg exp_avg_sq"]
    assert Spy.heard == ["before 0", *step, "before 1", *step, "finish"]
    zeroed = [name for name, parameter in model.named_parameters() if not parameter.any()]
    assert zeroed == ["model.layers.1.mlp.up_proj.weight"]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 0 is not finite"):
        train(model, tokens(), settings())
