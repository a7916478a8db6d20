"""Tiny trainings: a model, tokens, settings of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.registry import recipe_named
from blockwright.training import (
    Entry,
    Moment,
    Place,
    TokenStream,
    TrainedMatrix,
    TrainingRecipe,
    TrainingSettings,
    train,
)
from tests.models import random_model

STEPS = 10
FFN_SIZE = 96


def tokens(seed: int = 0, count: int = 2048) -> TokenStream:
    """Random walks over 128 tokens, in documents of 64."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randint(-3, 4, (count // 64, 64), generator=draw)
    return TokenStream(list(steps.cumsum(1) % 128), seed)


def settings(**changes: Any) -> TrainingSettings:
    options: dict[str, Any] = {
        "steps": STEPS,
        "batch_tokens": 64,
        "short_length": 32,
        "long_length": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "checks": STEPS,
    }
    return TrainingSettings(**(options | changes))


def trained(
    recipe: str | None, *, kind: str = "llama", checkpoint: Path | None = None, **changes: Any
) -> tuple[PreTrainedModel, list[Entry]]:
    """A tiny model after training, and the log."""
    model = random_model(kind)
    found = recipe_named(recipe) if recipe else None
    log = train(model, tokens(), settings(**changes), recipe=found, checkpoint=checkpoint)
    return model, log


def matrix_of(recipe: TrainingRecipe, W_OI: Tensor, *, bias: bool = False) -> TrainedMatrix:
    """A recipe's matrix of a weight."""
    linear = nn.Linear(W_OI.shape[1], W_OI.shape[0], bias=bias)
    with torch.no_grad():
        linear.weight.copy_(W_OI)
    return recipe.matrix(linear, Place("layer"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at(step: int, steps: int = 100) -> Moment:
    return Moment(step=step, steps=steps)
