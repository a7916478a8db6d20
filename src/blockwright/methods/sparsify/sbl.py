"""Sbl: keep the inputs that all rows vote for, by sparse Bayesian learning.

Paper:   He, Joseph, "Bayesian Algorithms for Kronecker-structured Sparse Vector Recovery With
         Application to IRS-MIMO Channel Estimation", 2023 (the prior and its EM).
Idea:    A weight's variance is a row's switch times an input's switch, and EM turns off what is not
         there.  Every row keeps the same inputs, for formats whose rows share what they keep.  It
         finds inputs that no row needs; where all are needed a little, as in trained linears, the
         inputs of largest norm lose less (docs/decisions.md).

Equations -> code
    w_oi ~ N(0, r_o c_i), EM            joint_support
    score = r_o c_i, the K largest      best_mask        the same inputs in every row
    refit                               masked_solution  least squares on the mask
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
         noise = variance of the noise, as a share of the mean output energy.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time O(rounds I^3), memory 3 I^2 in float64; the refit see numerics/masked_refit.
Differs from the paper: the weight is known; the noise stands for the error that may be made.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_kron.py: support and error against a switch per weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
    masked_solution,
)
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.sparse_bayes import joint_support
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)

Rule = Literal["alternating", "svd"]


@dataclass(frozen=True, kw_only=True)
class Sbl(LinearMethod):
    """Joint support of rows and inputs."""

    paper: ClassVar[str] = "He and Joseph, Kronecker-structured sparse Bayesian learning, 2023"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    rule: Rule = "svd"
    rounds: int = 20
    noise: float = 0.01
    damping: float = 0.01
    """Of the Gram, in EM and in the refit."""

    def __post_init__(self) -> None:
        check_damping("sbl", self.damping)
        if self.rule not in get_args(Rule):
            allowed = ", ".join(get_args(Rule))
            raise CandidateError(f"option sbl@rule: got {self.rule!r}, allowed: {allowed}")
        if self.rounds < 1:
            raise CandidateError(f"option sbl@rounds: got {self.rounds}, needs 1 or more")
        if not 0 < self.noise < float("inf"):
            raise CandidateError(f"option sbl@noise: got {self.noise}, needs a number above 0")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("sbl", format)
        check_finite(W_OI)
        mask_OI = target.best_mask(self.score(W_OI, input_gram(statistics), statistics.tokens))
        return masked_solution(W_OI, mask_OI, target, statistics, self.damping)

    def score(self, W_OI: Tensor, H_II: Tensor, tokens: int) -> Tensor:
        """r_o c_i [O, I]"""
        Hd_II = damped(H_II, self.damping)
        b_OI = W_OI @ Hd_II
        energy = float((b_OI * W_OI).sum(dtype=b_OI.double().dtype)) / len(W_OI)
        if not energy > 0:
            raise NumericalError("the weight is zero: no input is better than another")
        found = joint_support(
            b_OI, Hd_II, tokens / (self.noise * energy), rounds=self.rounds, rule=self.rule
        )
        return (found.rows_O[:, None] * found.columns_I).float()


METHOD = Sbl
