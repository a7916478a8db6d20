"""Welore: ranks by one threshold on normalized singular values; weights that gain nothing stay.

Paper:   Jaiswal, Wang, Yin, Liu, Chen, Zhao, Grama, Tian, Wang, "From GaLore to WeLore: How
         Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", ICML 2025.
Idea:    Some weights have heavy-tailed singular values, others nearly flat ones.  Scaled to 0..1,
         one threshold gives each its own rank, without any data.  What would be larger as two
         factors stays whole.  The uniform plan of one threshold is the paper's model; several
         thresholds on offer let the plan choose among them site by site.

Equations -> code
    n_k = (sigma_k - min) / (max - min), rank = count(n_k >= t)     counted_rank
    left = U S^1/2, right = S^1/2 V^T, of W with metric=weight      stored_factors
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; nothing with metric=weight.   Fills: ranks-t<thousandths>.
Cost:    time O(min(O, I)^3 + O I min(O, I)), twice with metric=gram; memory see
         numerics/weighted_svd.
Differs from the paper:
    1. Ranks are counted on the weight as in the paper, but the factors are the best ones in the
       metric of the inputs; metric=weight is the paper's plain SVD.
    2. Factors are used where they store fewer bytes than the weight in the same values; the paper
       asks for less than half of the ranks.
    3. quantile=0.99 scales by that quantile of the singular values: one outlier presses all others
       down.
    4. Fine-tuning of the factors alone is the adapter `welore` of `heal`; local healing tunes
       factors, norms and biases.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_lowrank.py: error against uniform ranks; the share left out; ranks
         monotone in the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.lowrank._factors import equal_rows, input_metric, stored_factors
from blockwright.numerics.spectra import normalized, rank_above
from blockwright.numerics.weighted_svd import WeightedSvd, weighted_svd
from blockwright.types import (
    Format,
    LinearMethod,
    Solution,
    Statistic,
    Statistics,
    ThresholdFormat,
)

Metric = Literal["gram", "weight"]


@dataclass(frozen=True, kw_only=True)
class Welore(LinearMethod):
    """Truncated SVD of a rank that the weight's own spectrum decides."""

    paper: ClassVar[str] = "Jaiswal et al., WeLore, ICML 2025"
    family: ClassVar[str] = "lowrank"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = ThresholdFormat  # type: ignore[type-abstract]

    metric: Metric = "gram"
    quantile: float = 1.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise CandidateError(f"option welore@metric: got {self.metric!r}, allowed: {allowed}")
        if not 0 < self.quantile <= 1:
            raise CandidateError(
                f"option welore@quantile: got {self.quantile}, needs above 0 and at most 1"
            )
        if not 0 <= self.damping < float("inf"):
            raise CandidateError(f"option welore@damping: got {self.damping}, needs 0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset() if self.metric == "weight" else frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> Solution:
        if not isinstance(format, ThresholdFormat):
            raise CandidateError(f"welore cannot fill {format.name}: it fills ranks-t<thousandths>")
        plain_II = torch.eye(W_OI.shape[1], device=W_OI.device)
        plain = weighted_svd(W_OI, plain_II)
        rank = self.counted_rank(plain, format.threshold)
        factored = format.factored((W_OI.shape[0], W_OI.shape[1]), rank)
        if self.metric == "gram":
            Hd_II = input_metric(statistics, self.damping)
        if factored is None:
            return format.values.nearest(W_OI)
        if self.metric == "weight":
            return stored_factors(plain, W_OI, plain_II, factored, equal_rows(W_OI))
        found = weighted_svd(W_OI, Hd_II)
        return stored_factors(found, W_OI, Hd_II, factored, equal_rows(W_OI))

    def counted_rank(self, plain: WeightedSvd, threshold: float) -> int:
        """Normalized singular values of the weight that reach the threshold."""
        return rank_above(normalized(plain.energy_K.sqrt(), self.quantile), threshold)


METHOD = Welore
