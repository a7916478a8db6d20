"""Sparse-IFT: FFNs that are wider and sparser, at the multiplications of the dense ones.

Paper:   Thangarasa, Saxena, Gupta, Lie, "Sparse Iso-FLOP Transformations for Maximizing Training
         Efficiency", 2023 (Sparse Wide); masks move as in Evci, Gale, Menick, Castro, Elsen,
         "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (RigL).
Idea:    At a share s of zeros 1 / (1 - s) times as many channels cost as many multiplications.  The
         wider layer has more masks to choose from, and training moves the mask: weights that stayed
         small go, those whose gradient is largest come.

Equations -> code
    f' = f / (1 - s)                                   inner_width
    drop 0.3 (1 + cos(pi t / T)) / 2 of each row       moved_share
    drop by |w|, grow by |dL / dw|, from zero          move
Shapes:  W [O, I], M bool [O, I]; f channels of an FFN.
Cost:    activations of 1 / (1 - s) times as many channels; dense gradients.
Differs from the paper:
    1. FFNs alone: hidden size and heads stay.  Branches in parallel collapse into one matrix where
       no nonlinearity is inside, and are not offered.
    2. Every row keeps equally many weights, as ``sparse50`` stores them; rows do not trade.
    3. The first mask is the largest half (or less) of the random weights.
    4. What was just dropped cannot be grown in the same move.
Raises:  TrainingError for a format that is not sparse10 to sparse90, or options out of range.
Checked: multiplications against the dense model's; the held-out loss of a small model from scratch
         against the dense one; tests/claims/test_training.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.numerics.masks import keep_per_row
from blockwright.training.masked import MaskedMatrix, masked_format
from blockwright.training.recipe import Moment, Place, Scope, TrainedMatrix, TrainingRecipe, forget
from blockwright.types import MaskedFormat

MULTIPLE = 8
"""New widths are multiples of this."""
FINEST = 10_000
"""Inputs by which the share of a format is known to four digits."""


@dataclass(frozen=True, kw_only=True)
class SparseIft(TrainingRecipe):
    """``sparseift@format=sparse50``"""

    format: str = "sparse50"
    every: int = 100
    """Steps between two moves of the mask."""
    share: float = 0.3
    """Share of the weights that the first move replaces."""
    until: float = 0.75
    """Share of the steps after which the mask stays."""

    paper: ClassVar[str] = (
        "Thangarasa, Saxena, Gupta, Lie: Sparse Iso-FLOP Transformations for Maximizing Training"
        " Efficiency, 2023; Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020"
    )
    scope: ClassVar[Scope] = Scope.FFN

    def __post_init__(self) -> None:
        format = self.masked
        if format.pattern_size or format.unit != (1, 1):
            raise TrainingError(
                f"recipe sparseift@format: got {self.format!r}, allowed: zeros anywhere in a row,"
                " e.g. sparse50 or sparse80: masks of a pattern cannot move one weight at a time"
            )
        if self.every < 1 or not (0 <= self.share <= 1 and 0 <= self.until <= 1):
            raise TrainingError(
                f"recipe sparseift: every {self.every}, share {self.share:g}, until"
                f" {self.until:g}: give 1 step or more, and shares from 0 to 1"
            )

    @property
    def masked(self) -> MaskedFormat:
        """The format of the FFNs' linears."""
        return masked_format("sparseift", self.format)

    @property
    def density(self) -> float:
        """1 - s."""
        return self.masked.kept(FINEST) / FINEST

    def inner_width(self, width: int) -> int:
        return round(width / self.density / MULTIPLE) * MULTIPLE

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return MovingMask(linear, place, self)

    def moves(self, moment: Moment) -> bool:
        """Whether the mask moves in this step."""
        return 0 < moment.step < moment.first(self.until) and moment.step % self.every == 0

    def moved_share(self, moment: Moment) -> float:
        """Share of the weights that are replaced."""
        progress = moment.step / max(1, moment.first(self.until))
        return self.share * (1 + math.cos(math.pi * progress)) / 2


class MovingMask(MaskedMatrix):
    """A sparse weight whose mask moves."""

    def __init__(self, linear: nn.Linear, place: Place, recipe: SparseIft) -> None:
        super().__init__(linear, place, recipe.masked)
        self.recipe = recipe

    def before_step(self, moment: Moment) -> None:
        if moment.step == 0:
            self.choose_mask()
            self.apply_mask()

    def after_backward(self, moment: Moment) -> None:
        gradient_OI = self.weight.grad
        if gradient_OI is not None and self.recipe.moves(moment):
            share = self.recipe.moved_share(moment)
            self.mask_OI.copy_(move(self.mask_OI, self.weight, gradient_OI, share))
        self.mask_gradient()

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        self.apply_mask()
        forget(remembered, self.mask_OI)


def move(mask_OI: Tensor, W_OI: Tensor, gradient_OI: Tensor, share: float) -> Tensor:
    """A mask with as many weights in each row, ``share`` of them others."""
    active = int(mask_OI[0].sum())
    moved = min(round(share * active), mask_OI.shape[1] - active)
    outside = torch.finfo(W_OI.dtype).min
    staying = keep_per_row(W_OI.abs().masked_fill(~mask_OI, outside), active - moved)
    growing = keep_per_row(gradient_OI.abs().masked_fill(mask_OI, outside), moved)
    return staying | growing


RECIPE = SparseIft
