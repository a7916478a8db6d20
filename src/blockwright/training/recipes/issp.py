"""ISS-P: the smallest weights shrink a little in every step, and may come back.

Paper:   Wang, Wang, Zhang, Fu, Tao, "Iterative Soft Shrinkage Learning for Efficient Image
         Super-Resolution", ICCV 2023.
Idea:    A hard mask chosen early is chosen by untrained magnitudes, and what it cuts cannot return.
         Here whatever is smallest at the moment is only multiplied by a factor below 1, so that the
         structure settles while it is trained; the mask is cut at the end and then kept.

Equations -> code
    U = smallest share of |W|, W_U *= rho       SoftlyShrunk.after_step
    M = largest 1 - s of |W|, then W = W . M    before_step at ``soft`` of the steps
Shapes:  W [O, I].
Phases:  ``soft`` of the steps shrink; the rest trains what is left, under a fixed mask.
Differs from the paper:
    1. The share is per row, pattern or unit, whatever the format stores, not per layer.
    2. rho = 0.95 unless steps are too few for it: then rho^steps = 0.01, at least 0.8.
    3. The shrinking counts against the learning rate of AdamW: at 1e-4 a factor of 0.95 per step is
       nearly a hard mask.
Raises:  TrainingError for a format without zeros or options out of range.
Checked: rho 1 is plain training, zeros stay zero, the count is exact; the held-out loss at 70%
         against a mask fixed at the start; tests/claims/test_training.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.training.masked import MaskedMatrix, masked_format
from blockwright.training.recipe import Moment, Place, TrainedMatrix, TrainingRecipe, forget

PAPER_FACTOR, LEAST_FACTOR, LEFT_OVER = 0.95, 0.8, 0.01


@dataclass(frozen=True, kw_only=True)
class Issp(TrainingRecipe):
    """``issp@format=sparse70``"""

    format: str = "sparse70"
    soft: float = 0.75
    """Share of the steps that shrink; 0 fixes the mask at the start."""
    factor: float = 0.0
    """rho, per step; 0: as the header says."""

    paper: ClassVar[str] = (
        "Wang, Wang, Zhang, Fu, Tao: Iterative Soft Shrinkage Learning for Efficient Image"
        " Super-Resolution, ICCV 2023"
    )

    def __post_init__(self) -> None:
        masked_format("issp", self.format)
        if not (0 <= self.soft < 1 and 0 <= self.factor <= 1):
            raise TrainingError(
                f"recipe issp: soft {self.soft:g} and factor {self.factor:g}: give a share of the"
                " steps from 0 to below 1, and a factor from 0 to 1"
            )

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return SoftlyShrunk(linear, place, self)

    def factor_of(self, moment: Moment) -> float:
        """rho."""
        if self.factor:
            return self.factor
        shrinking = max(1, moment.first(self.soft))
        return min(PAPER_FACTOR, max(LEAST_FACTOR, math.pow(LEFT_OVER, 1 / shrinking)))


class SoftlyShrunk(MaskedMatrix):
    """A weight whose smallest elements shrink, then stay zero."""

    def __init__(self, linear: nn.Linear, place: Place, recipe: Issp) -> None:
        super().__init__(linear, place, masked_format("issp", recipe.format))
        self.recipe = recipe

    def is_fixed(self, moment: Moment) -> bool:
        return moment.is_past(self.recipe.soft)

    def before_step(self, moment: Moment) -> None:
        if moment.begins(self.recipe.soft):
            self.choose_mask()
            self.apply_mask()

    def after_backward(self, moment: Moment) -> None:
        if self.is_fixed(moment):
            self.mask_gradient()

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        if self.is_fixed(moment):
            self.apply_mask()
            forget(remembered, self.mask_OI)
        else:
            self.choose_mask()
            self.weight.mul_(torch.where(self.mask_OI, 1.0, self.recipe.factor_of(moment)))


RECIPE = Issp
