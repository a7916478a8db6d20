"""Progressive gradient flow: pruned weights fade out in place of being cut.

Paper:   Bambhaniya, Yazdanbakhsh, Subramanian, Kao, Agrawal, Evci, Krishna, "Progressive Gradient
         Flow for Robust N:M Sparsity Training in Transformers", 2024.
Idea:    Above 80% of zeros the straight-through gradient of pruned weights is noise that is larger
         than the signal.  So what is outside the mask still counts, by a factor that falls from 1
         to 0 (MdGf), or the pattern itself gets sparser step by step (SdGf).  The rest of training
         has a fixed mask.

Equations -> code
    W . (M_t + beta_t (1 - M_t)), M_t by |W|              used_weight
    beta = 1 - t, or exp(-6 t), t = share of the decay     fading
    M-1 of M, M/2 of M, M/4 of M ... N of M                ladder, one rung after the other
Shapes:  W [O, I], M bool [O, I].
Phases:  dense for ``dense`` of the steps; decay; a fixed mask for the last ``fixed`` of them.
Differs from the paper:
    1. The gradient of pruned weights is that of the product, times beta: the paper leaves open
       whether it is scaled.
    2. MdGf takes any sparse format; SdGf needs N:M.
    3. When the mask is fixed, what the optimizer remembers of pruned weights is cleared.
Raises:  TrainingError for options out of range, or SdGf on a format that is not N:M.
Checked: beta 1 is dense, beta 0 masked, the fixed mask stays; the held-out loss at 1:8 against
         ``srste``; tests/claims/test_training.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.numerics.masks import keep_n_of_m
from blockwright.training.masked import MaskedMatrix, masked_format, pattern_of
from blockwright.training.recipe import Moment, Place, TrainedMatrix, TrainingRecipe, forget

DECAYS = ("linear", "exponential", "structure")
STEEPNESS = 6.0
"""Of the exponential decay, c."""


@dataclass(frozen=True, kw_only=True)
class Pgf(TrainingRecipe):
    """``pgf@format=sparse1of8,decay=structure``"""

    format: str = "sparse1of8"
    decay: str = "exponential"
    """``linear`` and ``exponential`` fade weights (MdGf), ``structure`` the pattern (SdGf)."""
    dense: float = 0.1
    """Share of the steps before the decay."""
    fixed: float = 0.2
    """Share of the steps after it."""

    paper: ClassVar[str] = (
        "Bambhaniya, Yazdanbakhsh, Subramanian, Kao, Agrawal, Evci, Krishna: Progressive Gradient"
        " Flow for Robust N:M Sparsity Training in Transformers, 2024"
    )

    def __post_init__(self) -> None:
        masked = masked_format("pgf", self.format)
        if self.decay not in DECAYS:
            raise TrainingError(
                f"recipe pgf@decay: got {self.decay!r}, allowed: {', '.join(DECAYS)}"
            )
        if self.decay == "structure":
            pattern_of("pgf", masked)
        if min(self.dense, self.fixed) < 0 or self.dense + self.fixed > 1:
            raise TrainingError(
                f"recipe pgf: dense {self.dense:g} and fixed {self.fixed:g} are shares of the"
                " steps: give 0 or more, together at most 1"
            )

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return PgfMatrix(linear, place, self)

    def decayed(self, moment: Moment) -> float:
        """Share of the decay that is done, 0 to 1."""
        if moment.is_past(1 - self.fixed):
            return 1.0
        begin, end = moment.first(self.dense), moment.first(1 - self.fixed)
        return 0.0 if moment.step < begin else (moment.step - begin) / (end - begin)

    def beta(self, moment: Moment) -> float:
        """What counts of the pruned weights."""
        if self.decay == "structure":
            return 0.0 if moment.is_past(self.dense) else 1.0
        return fading(self.decayed(moment), self.decay)


class PgfMatrix(MaskedMatrix):
    """A weight that fades outside of its mask."""

    beta: Tensor
    """fp32: what counts of the pruned weights"""
    settled: Tensor
    """bool: whether the mask is fixed"""

    def __init__(self, linear: nn.Linear, place: Place, recipe: Pgf) -> None:
        super().__init__(linear, place, masked_format("pgf", recipe.format))
        self.recipe = recipe
        self.register_buffer("beta", torch.ones((), device=self.weight.device))
        self.register_buffer("settled", torch.zeros_like(self.beta, dtype=torch.bool))

    def before_step(self, moment: Moment) -> None:
        self.beta.fill_(self.recipe.beta(moment))
        if not moment.is_past(1 - self.recipe.fixed):
            self.choose_rung(self.recipe.decayed(moment))
        elif not self.settled:
            self.choose_mask()
            self.settled.fill_(True)

    def choose_rung(self, decayed: float) -> None:
        """The mask of the weights as they are; of a denser pattern while that decays."""
        if self.recipe.decay != "structure":
            self.choose_mask()
            return
        n, m = pattern_of("pgf", self.format)
        rungs = ladder(n, m)
        rung = rungs[min(int(decayed * len(rungs)), len(rungs) - 1)]
        self.mask_OI.copy_(keep_n_of_m(self.weight.detach().abs(), rung, m))

    def used_weight(self) -> Tensor:
        return self.weight * torch.where(self.mask_OI, 1.0, self.beta)

    def after_step(self, moment: Moment, remembered: Mapping[str, Tensor]) -> None:
        if self.settled:
            self.apply_mask()
            forget(remembered, self.mask_OI)

    def finish(self) -> None:
        if not self.settled:
            self.choose_mask()
        self.apply_mask()


def fading(decayed: float, decay: str) -> float:
    """beta from 1 to 0; the exponential is cut to 0 at the end."""
    if decayed >= 1 or decay == "linear":
        return 1.0 - decayed
    return math.exp(-STEEPNESS * decayed)


def ladder(n: int, m: int) -> list[int]:
    """Weights kept of M, rung by rung: M - 1, M / 2, M / 4 ... N."""
    halves = [m >> k for k in range(1, m.bit_length()) if m >> k > n]
    return [*dict.fromkeys([max(m - 1, n), *halves, n])]


RECIPE = Pgf
