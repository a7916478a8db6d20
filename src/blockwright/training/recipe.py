"""The interface of a training-time recipe: what it changes in a trainer's step.

In place of every linear that a recipe concerns stands a ``TrainedMatrix`` with the linear's own
parameters.  It is asked at four places of a step, and once at the end:

    before_step       masks of this step
    forward           the product, and with it the backward pass
    after_backward    the gradients
    after_step        the weight, and what the optimizer remembers of it
    finish            the weight as it is saved

The recipe itself says what a step descends (``loss``): the next token's cross-entropy, or that of
several models in one.  Everything that a matrix needs beside the step's number are its parameters
and buffers, so that a checkpoint of the model and the optimizer is all that a resumed run needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.training.losses import token_losses
from blockwright.types import Channels


class Scope(StrEnum):
    """Which linears of the blocks a recipe concerns."""

    LINEARS = "linears"
    """All of them."""
    FFN = "ffn"
    """Those of the FFNs."""
    FFN_WRITERS = "ffn writers"
    """The last one of every FFN, which reads the channels."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where training is."""

    step: int
    """From 0."""
    steps: int

    @property
    def progress(self) -> float:
        """From 0 to just below 1."""
        return self.step / self.steps

    def first(self, share: float) -> int:
        """The step at which ``share`` of all steps are done."""
        return round(share * self.steps)

    def is_past(self, share: float) -> bool:
        """Whether ``share`` of all steps are done."""
        return self.step >= self.first(share)

    def begins(self, share: float) -> bool:
        """Whether this is the first step of which that is true."""
        return self.step == self.first(share)


@dataclass(frozen=True)
class Place:
    """Where a linear stands."""

    name: str
    """Path in the model."""
    channels: Channels | None = None
    """Of the FFN whose last linear it is; names are paths in the model."""
    readers: Mapping[str, nn.Linear] = field(default_factory=dict)
    """The linears that make these channels."""


class TrainedMatrix(nn.Module):
    """A linear under a recipe."""

    weight: Tensor
    """[O, I]: the linear's own parameter"""
    bias: Tensor | None
    """[O], likewise"""

    def __init__(self, linear: nn.Linear, place: Place) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.place = place

    def used_weight(self) -> Tensor:
        """What the forward pass multiplies by, [O, I], with the gradient the recipe wants."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        return nn.functional.linear(x, self.used_weight(), self.bias)

    def before_step(self, moment: Moment) -> None:
        """Before the forward pass, without gradients."""

    def after_backward(self, moment: Moment) -> None:
        """Gradients are there, not yet clipped; without gradients."""

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        """The optimizer has moved the parameters; without gradients.

        ``remembered``: what it keeps for the weight, of the weight's shape; to be changed in place.
        """

    def finish(self) -> None:
        """Make the weight what is saved, in place; without gradients."""


class TrainingRecipe(ABC):
    """What changes in training.  Implementations are frozen, keyword-only dataclasses of
    hyperparameters; ``__post_init__`` raises ``TrainingError`` for those that cannot be.
    """

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    family: ClassVar[str] = "training"
    scope: ClassVar[Scope] = Scope.LINEARS
    format: str
    """The format that stores without loss what the recipe leaves."""

    @abstractmethod
    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        """What stands in the linear's place; ``UserError`` naming it where that cannot be."""

    def loss(
        self,
        model: PreTrainedModel,
        tokens_BT: Tensor,
        matrices: Sequence[TrainedMatrix],
        moment: Moment,
    ) -> Tensor:
        """What a step descends: the mean cross-entropy of the next token."""
        return token_losses(model, tokens_BT).mean()

    def inner_width(self, width: int) -> int:
        """Channels of every FFN of a new model that would have ``width`` without the recipe."""
        return width


@torch.no_grad()
def forget(remembered: Mapping[str, Tensor], mask_OI: Tensor) -> None:
    """Clear what an optimizer remembers outside of a mask."""
    for tensor in remembered.values():
        tensor.mul_(mask_OI)
