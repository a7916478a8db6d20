"""AdaRound: every weight rounded down or up, whichever is better beside the others.

Paper:   Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for
         Post-Training Quantization", ICML 2020.
Idea:    Rounding to nearest ignores that errors of one row add up in its output.  The choice is
         relaxed to a number between 0 and 1, trained on the output error, and pulled to 0 or 1
         while training goes on.  Scales stay, and no weight can move by more than one step.

Equations -> code
    Eq. (21)-(25)   SoftRounding   soft choice, its weight, its regularizer
    loss            tune_on_gram   tr(D H D^T), in units of round-to-nearest's
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every affine grid format.
Cost:    time ``steps`` products O(O I^2), memory six copies of W.
Differs from the paper:
    1. The loss is taken from the Gram of the inputs, before the activation function.
    2. 800 full steps in place of 10,000 on batches.
    3. The best of 50 moments is returned, or round-to-nearest.
Raises:  NumericalError when W is not finite or no token reached the site.
Checked: error against rounding to nearest: tests/claims/test_rounding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.methods.quantize._learning import LearnedRounding, Nearest
from blockwright.tuning import SoftRounding
from blockwright.types import GridSolution


@dataclass(frozen=True, kw_only=True)
class AdaRound(LearnedRounding):
    """Learned choice between rounding down and up."""

    paper: ClassVar[str] = "Nagel et al., AdaRound, ICML 2020"
    version: ClassVar[int] = 1
    name: ClassVar[str] = "adaround"

    steps: int = 800
    rate: float = 0.03
    pull: float = 3.0
    """Weight of the regularizer; lower leaves more undecided until the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_option("pull", self.pull >= 0, "0 or more")

    def learn(self, W_OI: Tensor, start: Nearest) -> GridSolution:
        grid = start.grid
        soft = SoftRounding(W_OI, grid.scale, grid.zero_point, grid.levels)
        error = self.tune(
            soft.weight,
            [(soft.V, self.rate)],
            W_OI,
            start,
            judged=soft.rounded,
            extra_loss=lambda progress: self.pull * soft.regularizer(progress),
        )
        if error >= start.unit:
            return start.solution
        return GridSolution(codes_OI=soft.codes(), grid=grid)


METHOD = AdaRound
