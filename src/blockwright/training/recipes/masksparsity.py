"""MaskSparsity: the channels that will go are chosen first, and only they are pulled to zero.

Paper:   Jiang, Zhao, Zhao, An, Tang, Wang, "Pruning-aware Sparse Regularization for Network
         Pruning", 2022.
Idea:    An L1 pull on all channels also holds back those that survive.  Every channel of an FFN
         gets a factor; the channels of least energy are chosen once, and the pull acts on their
         factors alone until they are zero, when leaving them out changes nothing.  What is left is
         trained on, and ``fit`` stores it with narrower matrices.

Equations -> code
    y = Wd (gamma . a) = (Wd diag(gamma)) a              used_weight
    K = channels of least E[a^2] |Wd_:j|^2               choose, in the first step
    gamma_K = sign(gamma_K) max(|gamma_K| - s, 0)        after_step, after AdamW's own move
Shapes:  Wd [O, I], I channels, a [T, I], gamma [I].
Phases:  ``pull`` of the steps pull; then what is left of K is cut and the rest trains on.
Differs from the paper:
    1. Channels of FFNs in place of batch norms' scales; every FFN loses equally many.
    2. The criterion is the energy of a channel's output in the first step, not a run of its own.
    3. A proximal step in place of a subgradient, so that factors reach exactly zero; s is 1.5 over
       the steps that pull, whatever the learning rate.
    4. Rows that make channels of K are set to zero as well at the end.
    5. ``only=false`` pulls on all channels, each by less, so that the sum is the same, and cuts the
       smallest: what the paper compares with.
Raises:  TrainingError for a format that narrows nothing or options out of range.
Checked: kept channels feel no pull, folding is exact, the cut changes outputs within its bound;
         the held-out loss against pulling on all and against cutting first;
         tests/claims/test_training.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import CandidateError, TrainingError
from blockwright.registry import format_named
from blockwright.training.recipe import Moment, Place, Scope, TrainedMatrix, TrainingRecipe
from blockwright.types import WidthFormat

OVERSHOOT = 1.5
"""How far the pull would move a factor of 1 in all; above 1, it outweighs the optimizer."""


@dataclass(frozen=True, kw_only=True)
class MaskSparsity(TrainingRecipe):
    """``masksparsity@format=narrow-p75``"""

    format: str = "narrow-p75"
    pull: float = 0.6
    """Share of the steps that pull; 0 cuts in the first step."""
    only: bool = True
    """Pull on the chosen channels only."""

    paper: ClassVar[str] = (
        "Jiang, Zhao, Zhao, An, Tang, Wang: Pruning-aware Sparse Regularization for Network"
        " Pruning, 2022"
    )
    scope: ClassVar[Scope] = Scope.FFN_WRITERS

    def __post_init__(self) -> None:
        if not 0 <= self.pull < 1:
            raise TrainingError(
                f"recipe masksparsity@pull: got {self.pull:g}, allowed: a share of the steps from 0"
                " to below 1"
            )
        _ = self.narrower

    @property
    def narrower(self) -> WidthFormat:
        """The format of the FFNs."""
        try:
            format = format_named(self.format)
        except CandidateError as error:
            raise TrainingError(f"recipe masksparsity@format: {error}") from None
        if not isinstance(format, WidthFormat) or format.values is not None:
            raise TrainingError(
                f"recipe masksparsity@format: got {self.format!r}, allowed: narrower FFNs with"
                " plain values, e.g. narrow-p75; other values are what fit chooses later"
            )
        return format

    def strength(self, removed_share: float) -> float:
        """How far a factor is pulled in all; on all channels together as far as on K alone."""
        return OVERSHOOT * (1.0 if self.only else removed_share)

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return GatedMatrix(linear, place, self)


class GatedMatrix(TrainedMatrix):
    """The last linear of an FFN with a factor for every channel."""

    energy_I: Tensor  # noqa: N815 - shape suffix
    """fp32 [I]: sum of a^2 over the tokens of the first step"""
    removed_I: Tensor  # noqa: N815 - shape suffix
    """bool [I]: K"""

    def __init__(self, linear: nn.Linear, place: Place, recipe: MaskSparsity) -> None:
        super().__init__(linear, place)
        if place.channels is None:
            raise ValueError(f"{place.name} reads no channels")
        self.recipe, self.channels = recipe, place.channels
        ones_I = torch.ones(linear.in_features, device=linear.weight.device)
        self.gate_I = nn.Parameter(ones_I)
        self.register_buffer("energy_I", torch.zeros_like(ones_I))
        self.register_buffer("removed_I", torch.zeros_like(ones_I, dtype=torch.bool))
        self._watches = False

    @property
    def removed(self) -> int:
        """How many channels go."""
        return self.in_features - self.recipe.narrower.kept(self.in_features)

    def used_weight(self) -> Tensor:
        return self.weight * self.gate_I

    def forward(self, x: Tensor) -> Tensor:
        if self._watches:
            self.energy_I += x.detach().float().square().flatten(0, -2).sum(0)
        return super().forward(x)

    def before_step(self, moment: Moment) -> None:
        self._watches = moment.step == 0
        if moment.begins(self.recipe.pull) and moment.step:
            self.cut()

    def after_backward(self, moment: Moment) -> None:
        if moment.step == 0:
            self._watches = False
            self.choose(self.energy_I * self.weight.square().sum(0))
        if moment.is_past(self.recipe.pull) and self.gate_I.grad is not None:
            self.gate_I.grad.masked_fill_(self.removed_I, 0.0)

    def choose(self, score_I: Tensor) -> None:
        """K: the lowest scores, ties by the lowest index."""
        order = score_I.detach().sort(stable=True).indices
        self.removed_I.zero_().index_fill_(0, order[: self.removed], True)

    def cut(self) -> None:
        """Factors of K become zero; with a pull on all, K is what it made smallest."""
        if not self.recipe.only:
            self.choose(self.gate_I.abs())
        self.gate_I.masked_fill_(self.removed_I, 0.0)

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        if moment.is_past(self.recipe.pull):
            self.gate_I.masked_fill_(self.removed_I, 0.0)
            return
        pull = self.recipe.strength(self.removed / self.in_features) / moment.first(
            self.recipe.pull
        )
        pulled_I = self.gate_I.sign() * (self.gate_I.abs() - pull).clamp(min=0)
        everywhere = self.removed_I if self.recipe.only else torch.ones_like(self.removed_I)
        self.gate_I.copy_(torch.where(everywhere, pulled_I, self.gate_I))

    def finish(self) -> None:
        """Fold the factors, and silence what makes the channels that are gone."""
        self.cut()
        self.weight.mul_(self.gate_I)
        gone = self.removed_I.nonzero().flatten().tolist()
        for name, reader in self.place.readers.items():
            rows = self.channels.rows(name, gone)
            reader.weight[rows] = 0.0
            if reader.bias is not None:
                reader.bias[rows] = 0.0


RECIPE = MaskSparsity
