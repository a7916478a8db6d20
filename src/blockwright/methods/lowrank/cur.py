"""Cur: some of a weight's own rows, and the best mixing of them for the others.

Paper:   Yadav, Monath, Angell, Zaheer, McCallum, "Efficient Nearest Neighbor Search for
         Cross-Encoder Models using Matrix Factorization", EMNLP 2022 (CUR: M = C U R from rows and
         columns of M).
Idea:    A matrix of low rank is known from a few of its own rows.  The kept outputs are exact; the
         others are predicted from them by least squares, in the metric of the inputs.  Rows that
         are the weight's own keep whatever they had (zeros, a grid).  At equal bytes `lord` loses
         less, because its rows need not be the weight's.

Equations -> code
    p = pivots of (W H^1/2)^T              pivot_rows    A A^T = W H W^T, A = U energy^1/2
    R = W_p                                solve_each
    C U = W H R^T (R H R^T)^-1             mix_rows      C and U multiplied out: T = C U, T_p = 1
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; nothing with metric=weight.   Fills: id-*.
Cost:    time O(min(O, I)^3 + O I min(O, I) + O^2 min(O, I)) once for all ranks, O(O R^2) for each;
         memory see numerics/weighted_svd.
Differs from the paper:
    1. M is known, so that U need not come from the intersection M[I, J] alone, which explodes with
       noise; C U is the optimal one, and then no column of M has to be kept.
    2. Rows, not columns: kept columns, with the optimal rest, have 1.3 to 2.8 times the error at
       equal bytes (docs/decisions.md).
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_lowrank.py: error against the SVD; exactness; random anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.lowrank._factors import input_metric, stored_rows
from blockwright.numerics.interpolation import mix_rows, pivot_rows
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.types import (
    Format,
    InterpolatedFormat,
    InterpolatedSolution,
    LinearMethod,
    Statistic,
    Statistics,
)

Metric = Literal["gram", "weight"]


@dataclass(frozen=True, kw_only=True)
class Cur(LinearMethod):
    """Own rows, and a mixing."""

    paper: ClassVar[str] = "Yadav et al., CUR for cross-encoders, EMNLP 2022"
    family: ClassVar[str] = "lowrank"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = InterpolatedFormat  # type: ignore[type-abstract]

    metric: Metric = "gram"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise CandidateError(f"option cur@metric: got {self.metric!r}, allowed: {allowed}")
        if not 0 <= self.damping < float("inf"):
            raise CandidateError(f"option cur@damping: got {self.damping}, needs 0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset() if self.metric == "weight" else frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> InterpolatedSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[InterpolatedSolution]:
        """``solve`` for one format after another, bit for bit; rows are ordered once."""
        if self.metric == "weight":
            Hd_II = torch.eye(W_OI.shape[1], device=W_OI.device)
        else:
            Hd_II = input_metric(statistics, self.damping)
        found = weighted_svd(W_OI, Hd_II)
        A_OK = found.basis_OK * found.energy_K.sqrt()
        pivots_O = pivot_rows(A_OK)
        for format in formats:
            if not isinstance(format, InterpolatedFormat):
                raise CandidateError(f"cur cannot fill {format.name}: it fills id-*")
            kept_R = pivots_O[: format.rank((W_OI.shape[0], W_OI.shape[1]))]
            mixing_MR = mix_rows(A_OK, kept_R)
            yield stored_rows(W_OI, Hd_II, format, kept_R, W_OI[kept_R], mixing_MR)


METHOD = Cur
