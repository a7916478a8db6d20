"""Kron: the best sum of Kronecker products for the outputs, not for the weight.

Paper:   Van Loan and Pitsianis, "Approximation with Kronecker Products", 1993; the metric of the
         inputs and the turns are ours.
Idea:    The nearest sum is a truncated SVD of the rearranged weight, and poor: transformer weights
         are far from Kronecker.  Their outputs are not: inputs lie near a subspace, and of the many
         sums that agree there the turns find one that is near the weight.  It pays below half of
         the bytes, where it beats low rank on most kinds of linears; above, rows and a mixing
         (`id-*`) lose less.

Equations -> code
    W.reshape(o1, o2, i1, i2) -> [o1 i1, o2 i2], SVD      scaled_svd, in the metric H1 (x) H2
    fix all B, solve A in the metric H; fix all A, solve B    refine, `rounds` times
    A behind the rounded B                                    solve_left
    G^1/2 W in place of W, A / G^1/2, where A_r has all O rows     fisher=true
Shapes:  O = o1 o2 out features, I = i1 i2 in features, R products.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; nothing with metric=weight; OUTPUT_GRADIENT too with fisher=true.
         Fills: kron<columns>-*, kron<rows>x<columns>-*.
Cost:    time O(min(o1 i1, o2 i2)^3 + O I^2 + rounds R o2 I^2), memory see numerics/kronecker.
Differs from the paper:
    1. metric=gram, the default, is ours; metric=weight is the paper's nearest sum.
    2. Half-rounds are a few conjugate-gradient steps, preconditioned by H1 (x) H2, instead of
       normal equations of size R i1: those are too large at half of the bytes.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_kron.py: exact sums, error against the nearest sum and against low rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.lowrank._factors import equal_rows, input_metric, rows_by_gradient
from blockwright.numerics.kronecker import (
    Aim,
    Factors,
    refine,
    scaled_svd,
    solve_left,
)
from blockwright.numerics.weighted_svd import balanced_factors
from blockwright.types import (
    Format,
    GridFormat,
    KroneckerFormat,
    KroneckerSolution,
    KroneckerSplit,
    LinearMethod,
    Statistic,
    Statistics,
)

Metric = Literal["gram", "weight"]
LAST_STEPS = 16
"""Conjugate-gradient steps for the left factors behind rounded right ones."""


@dataclass(frozen=True, kw_only=True)
class Kron(LinearMethod):
    """Sum of Kronecker products."""

    paper: ClassVar[str] = "Van Loan and Pitsianis, Approximation with Kronecker Products, 1993"
    family: ClassVar[str] = "lowrank"
    version: ClassVar[int] = 2
    fills: ClassVar[type[Format]] = KroneckerFormat  # type: ignore[type-abstract]

    metric: Metric = "gram"
    fisher: bool = False
    rounds: int = 10
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise CandidateError(f"option kron@metric: got {self.metric!r}, allowed: {allowed}")
        if self.rounds < 0:
            raise CandidateError(f"option kron@rounds: got {self.rounds}, needs 0 or more")
        if not 0 <= self.damping < float("inf"):
            raise CandidateError(f"option kron@damping: got {self.damping}, needs 0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        needed = {Statistic.OUTPUT_GRADIENT} if self.fisher else set()
        return frozenset(needed if self.metric == "weight" else {Statistic.INPUT_GRAM, *needed})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> KroneckerSolution:
        if not isinstance(format, KroneckerFormat):
            raise CandidateError(f"kron cannot fill {format.name}: it fills kron<columns>-*")
        split = format.split((W_OI.shape[0], W_OI.shape[1]))
        a_O = self.row_weights(statistics, W_OI, split)
        weighed_OI = W_OI * a_O[:, None]
        if self.metric == "weight":
            Hd_II = torch.eye(W_OI.shape[1], device=W_OI.device)
            found = scaled_svd(weighed_OI, Hd_II, split)
        else:
            Hd_II = input_metric(statistics, self.damping)
            start = scaled_svd(weighed_OI, Hd_II, split)
            found = refine(weighed_OI, Hd_II, split, start, self.rounds)
        if self.fisher:
            a_P1 = a_O.repeat_interleave(split.columns)[:, None]
            found = Factors(*balanced_factors(found.A_PR / a_P1, found.B_RQ))
        return rounded(W_OI, Hd_II, split, found, format)

    def row_weights(self, statistics: Statistics, W_OI: Tensor, split: KroneckerSplit) -> Tensor:
        """a [O]: errors of output o count a_o^2."""
        if not self.fisher:
            return equal_rows(W_OI)
        if split.block_rows > 1:
            raise NumericalError(
                f"outputs can be weighed where left factors have all {len(W_OI)} rows, not"
                f" {split.rows}; use kron{split.columns}-*, or leave fisher out"
            )
        return rows_by_gradient(statistics)


def rounded(
    W_OI: Tensor, Hd_II: Tensor, split: KroneckerSplit, found: Factors, format: KroneckerFormat
) -> KroneckerSolution:
    """The factors as stored; the left ones are solved again behind rounded right ones."""
    left, right = split.to_parts(found.A_PR, found.B_RQ)
    stored_right = format.values.nearest(right)
    if isinstance(format.values, GridFormat):
        B_RQ = split.right_factors(stored_right.weight())
        aim, at = Aim.of(W_OI, Hd_II, split), Factors(found.A_PR, B_RQ)
        A_PR = solve_left(aim, at, steps=LAST_STEPS)
        left, _ = split.to_parts(A_PR, B_RQ)
    return KroneckerSolution(split=split, left=format.values.nearest(left), right=stored_right)


METHOD = Kron
