"""Nested: the first channels of every FFN are trained to be an FFN of their own.

Paper:   Devvrit, Kudugunta, Kusupati, et al., "MatFormer: Nested Transformer for Elastic
         Inference", NeurIPS 2024; the rules of a step from Yu, Jin, Liu, et al., "BigNAS: Scaling
         Up Neural Architecture Search with Big Single-Stage Models", ECCV 2020.
Idea:    One set of weights holds models of several widths: f, f/2, f/4 ... channels, always the
         first.  In every step the widest and the narrowest are run, and some between (sandwich);
         the widest learns from the text, the others from what the widest says in the same step.
         Afterwards any width of any block is cut off without calibration
         (``narrow-p50:matformer``), and a plan picks one for each.

Equations -> code
    y = Wd[:, :g] (Wu x)[:g]                       NestedMatrix.forward
    widths: all, half of that, ... the format's    NestedMatrix.width
    CE(all) + KL(all || narrower), mean            loss
    channels in the order of E[a^2] |Wd_:j|^2      NestedMatrix.sort_channels, in the first step
Shapes:  Wd [O, I], I channels, g of them used.
Differs from the papers:
    1. A trained model: its channels are sorted once, which changes no output.
    2. All blocks of a child have one width in training, as in MatFormer, which runs one child a
       step; with ``children=1`` it is the widest, and training is plain.
    3. Depth, heads and resolution stay; the learning rate is the loop's, and weight decay is that
       of all weights.
    4. The mean of the children's losses in place of the sum: the optimizer's steps do not depend on
       the scale.
Raises:  TrainingError for a format that narrows no FFN, or options out of range.
Checked: tests/claims/test_training.py: children are slices, one child is plain training, and the
         loss at a quarter of the channels against a model trained without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.errors import CandidateError, TrainingError
from blockwright.registry import format_named
from blockwright.training.losses import divergence, logits_of, next_token_losses
from blockwright.training.recipe import Moment, Place, Scope, TrainedMatrix, TrainingRecipe
from blockwright.types import PartRole, WidthFormat


@dataclass(frozen=True, kw_only=True)
class Nested(TrainingRecipe):
    """``nested@format=narrow-p25``"""

    format: str = "narrow-p25"
    """The narrowest child."""
    children: int = 4
    """Runs of a step: the widest, then the narrowest, then random ones between."""
    distil: bool = True
    """Children learn from the widest; false: from the text."""
    sort: bool = True
    """Sort channels in the first step; false where they are nested already."""

    paper: ClassVar[str] = (
        "Devvrit, Kudugunta, Kusupati et al.: MatFormer: Nested Transformer for Elastic Inference,"
        " NeurIPS 2024; Yu, Jin, Liu et al.: BigNAS: Scaling Up Neural Architecture Search with Big"
        " Single-Stage Models, ECCV 2020"
    )
    scope: ClassVar[Scope] = Scope.FFN_WRITERS

    def __post_init__(self) -> None:
        if self.children < 1:
            raise TrainingError(f"recipe nested@children: got {self.children}, allowed: 1 or more")
        _ = self.narrowest

    @property
    def narrowest(self) -> WidthFormat:
        """The format of the narrowest child."""
        try:
            format = format_named(self.format)
        except CandidateError as error:
            raise TrainingError(f"recipe nested@format: {error}") from None
        narrows = isinstance(format, WidthFormat) and format.role is PartRole.FFN
        if not (narrows and isinstance(format, WidthFormat) and format.values is None):
            raise TrainingError(
                f"recipe nested@format: got {self.format!r}, allowed: narrower FFNs with plain"
                " values, e.g. narrow-p25; other values are what fit chooses later"
            )
        return format

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return NestedMatrix(linear, place, self)

    def loss(
        self,
        model: PreTrainedModel,
        tokens_BT: Tensor,
        matrices: Sequence[TrainedMatrix],
        moment: Moment,
    ) -> Tensor:
        """The mean loss of some children; the widest first, which the others learn from."""
        nested = [matrix for matrix in matrices if isinstance(matrix, NestedMatrix)]
        halvings = max(matrix.halvings for matrix in nested)
        widest = logits_of(model, tokens_BT)
        losses = [next_token_losses(widest, tokens_BT).mean()]
        for halving in self.levels(halvings):
            with at_halving(nested, halving):
                logits = logits_of(model, tokens_BT)
            if self.distil:
                losses.append(divergence(widest, logits))
            else:
                losses.append(next_token_losses(logits, tokens_BT).mean())
        return torch.stack(losses).mean()

    def levels(self, halvings: int) -> list[int]:
        """How often the width is halved in the children beside the widest: drawn from torch's
        generator, which the loop seeds before every step.
        """
        if not halvings:
            return []
        drawn = torch.randint(1, halvings + 1, (max(self.children - 2, 0),)).tolist()
        return [halvings, *drawn][: self.children - 1]


class NestedMatrix(TrainedMatrix):
    """The last linear of an FFN, which reads the first channels alone where a child runs."""

    energy_I: Tensor  # noqa: N815 - shape suffix
    """fp32 [I]: sum of a^2 over the tokens of the first step"""

    def __init__(self, linear: nn.Linear, place: Place, recipe: Nested) -> None:
        super().__init__(linear, place)
        if place.channels is None:
            raise ValueError(f"{place.name} reads no channels")
        self.recipe, self.channels = recipe, place.channels
        zeros_I = torch.zeros(linear.in_features, device=linear.weight.device)
        self.register_buffer("energy_I", zeros_I)
        self.halving = 0
        """Of the child that runs."""
        self._watches = False

    @property
    def least(self) -> int:
        """Channels of the narrowest child."""
        return self.recipe.narrowest.kept(self.in_features)

    @property
    def halvings(self) -> int:
        """How often the width is halved down to the narrowest child."""
        count = 0
        while self.in_features >> count > self.least:
            count += 1
        return count

    def width(self, halving: int) -> int:
        """Channels of a child."""
        return max(self.in_features >> halving, self.least)

    def forward(self, x: Tensor) -> Tensor:
        if self._watches and not self.halving:
            self.energy_I += x.detach().float().square().flatten(0, -2).sum(0)
        g = self.width(self.halving)
        return nn.functional.linear(x[..., :g], self.weight[:, :g], self.bias)

    def before_step(self, moment: Moment) -> None:
        self._watches = self.recipe.sort and moment.step == 0

    def after_backward(self, moment: Moment) -> None:
        if self._watches:
            self._watches = False
            self.sort_channels(self.energy_I * self.weight.square().sum(0))

    def sort_channels(self, score_I: Tensor) -> None:
        """Put the channels in falling order of their scores, and gradients with them: outputs stay.

        It happens before the first step of the optimizer, which remembers nothing yet.
        """
        order = score_I.detach().sort(descending=True, stable=True).indices
        for tensor in (self.weight, self.weight.grad):
            if tensor is not None:
                tensor.copy_(tensor[:, order])
        for name, reader in self.place.readers.items():
            every = self.channels.rows(name, range(self.in_features))
            moved = self.channels.rows(name, order.tolist())
            for tensor in (reader.weight, reader.bias):
                _move_rows(tensor, every, moved)


def _move_rows(parameter: Tensor | None, every: Sequence[int], moved: Sequence[int]) -> None:
    """Rows ``moved`` of a parameter and its gradient come to the places ``every``."""
    for tensor in (parameter, None if parameter is None else parameter.grad):
        if tensor is not None:
            tensor[list(every)] = tensor[list(moved)]


@contextmanager
def at_halving(matrices: Sequence[NestedMatrix], halving: int) -> Iterator[None]:
    """Inside, the model is a child."""
    for matrix in matrices:
        matrix.halving = halving
    try:
        yield
    finally:
        for matrix in matrices:
            matrix.halving = 0


RECIPE = Nested
