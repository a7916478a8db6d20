"""SR-STE: sparse weights in the forward pass, dense gradients, and a pull on what is pruned.

Paper:   Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, "Learning N:M Fine-grained Structured Sparse
         Neural Networks From Scratch", ICLR 2021.
Idea:    The mask is chosen anew in every step, so weights may come back: the gradient goes straight
         through it to the dense master.  A pull on pruned weights keeps the mask from flickering.
         Above 80% of zeros the straight-through gradient is mostly noise.

Equations -> code
    y = x (W . M)^T, M by |W|                  used_weight
    dW = g^T x + decay (1 - M) . W             used_weight (straight through), after_backward
Shapes:  x [..., I], W [O, I], M bool [O, I].
Differs from the paper: any sparse format, not N:M alone; AdamW in place of SGD, so the pull counts
         relative to the gradient.
Raises:  TrainingError for a format without zeros or options out of range.
Checked: tests/training/recipes/test_srste.py; what other recipes are measured against,
         tests/claims/test_training.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.training.masked import MaskedMatrix, masked_format
from blockwright.training.recipe import Moment, Place, TrainedMatrix, TrainingRecipe
from blockwright.types import MaskedFormat


@dataclass(frozen=True, kw_only=True)
class Srste(TrainingRecipe):
    """``srste@format=sparse2of4,decay=0.0002``"""

    format: str = "sparse2of4"
    decay: float = 2e-4
    """Pull of pruned weights to zero, as a part of their gradient."""

    paper: ClassVar[str] = (
        "Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li: Learning N:M Fine-grained Structured Sparse"
        " Neural Networks From Scratch, ICLR 2021"
    )

    def __post_init__(self) -> None:
        masked_format("srste", self.format)
        if self.decay < 0:
            raise TrainingError(f"recipe srste@decay: got {self.decay:g}, allowed: 0 or more")

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return SrsteMatrix(linear, place, masked_format("srste", self.format), self.decay)


class SrsteMatrix(MaskedMatrix):
    """A dense master weight behind a mask."""

    def __init__(self, linear: nn.Linear, place: Place, format: MaskedFormat, decay: float) -> None:
        super().__init__(linear, place, format)
        self.decay = decay

    def before_step(self, moment: Moment) -> None:
        self.choose_mask()

    def used_weight(self) -> Tensor:
        return self.weight + (self.weight * self.mask_OI - self.weight).detach()

    def after_backward(self, moment: Moment) -> None:
        if self.decay and self.weight.grad is not None:
            self.weight.grad.add_(self.weight * ~self.mask_OI, alpha=self.decay)

    def finish(self) -> None:
        self.choose_mask()
        self.apply_mask()


RECIPE = Srste
