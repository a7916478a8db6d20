"""Mfac: prune by the inverse of an empirical Fisher matrix that is never formed.

Paper:   Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
         Information", NeurIPS 2021.
Idea:    Optimal brain surgeon on a curvature of few samples: a weight goes where w^2 / inv(F)_jj is
         small, and the others answer.  With M samples of I inputs it takes memory M I, where every
         method on the Gram takes I^2: for inputs so wide that no Gram fits.  Fewer samples than
         inputs say little about most directions, so that it loses to those methods where they fit.

Equations -> code
    F^-1, its diagonal            EmpiricalFisher    numerics/empirical_fisher
    saliency w^2 / (2 diag_j)     solve
    joint update of the rest      EmpiricalFisher.removed
    rounds of falling density     densities
Shapes:  O out features, I in features, M samples.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_SAMPLES.   Fills: every sparse format.
Cost:    time 40 O(O I M) a round, memory M I and six of W; no Gram.
Differs from the paper:
    1. The gradients are those of each output's squared error: the sampled inputs, the same for all
       rows, in place of gradients of the loss for all weights.
    2. The rest answers to all that goes in a round together, not to each alone.
    3. Rounds only where any number can be kept: masks with a pattern are chosen at once.
Raises:  NumericalError when W or a sample is not finite, or no token reached the site.
Checked: tests/claims/test_mask_search.py: the inverse, error against magnitude and Wanda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    masked_format,
    masked_solution,
)
from blockwright.numerics.empirical_fisher import EmpiricalFisher
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Mfac(LinearMethod):
    """Prune on samples of the inputs."""

    paper: ClassVar[str] = "Frantar, Kurtic, Alistarh, M-FAC, NeurIPS 2021"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    rounds: int = 4
    damping: float = 0.01
    """lambda, of the mean square of an input."""

    def __post_init__(self) -> None:
        check_damping("mfac", self.damping)
        if self.rounds < 1:
            raise CandidateError(f"option mfac@rounds: got {self.rounds}, needs 1 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_SAMPLES})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("mfac", format)
        check_finite(W_OI)
        fisher = self.fisher(statistics)
        root_I = fisher.diagonal().sqrt()
        w_OI = W_OI
        for kept in self.kept_in_rounds(W_OI.shape[1], target):
            mask_OI = target.best_mask(w_OI.abs() / root_I, kept)
            w_OI = fisher.removed(W_OI, ~mask_OI)
        return masked_solution(w_OI, mask_OI, target, statistics, 0.0)

    def fisher(self, statistics: Statistics) -> EmpiricalFisher:
        """F of the sampled inputs."""
        if statistics.tokens == 0:
            raise NumericalError("no calibration token reached this site: there are no samples")
        X_MI = statistics.need(Statistic.INPUT_SAMPLES)
        mean_square = float(X_MI.square().mean())
        if not 0 < mean_square < float("inf"):
            raise NumericalError("the sampled inputs are zero or not finite")
        return EmpiricalFisher.of(X_MI, self.damping * mean_square)

    def kept_in_rounds(self, in_features: int, format: MaskedFormat) -> list[int]:
        """Inputs kept after every round, falling geometrically, whole units."""
        last, columns = format.kept(in_features), format.unit[1]
        if format.pattern_size:
            return [last]
        share = (last / in_features) ** (1 / self.rounds)
        counts = [in_features * share**done for done in range(1, self.rounds)]
        return [max(round(count / columns) * columns, last) for count in counts] + [last]


METHOD = Mfac
