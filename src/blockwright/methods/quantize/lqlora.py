"""Lqlora: split a weight into few bits and a low-rank product, by turns.

Paper:   Guo, Greengard, Xing, Kim, "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for
         Efficient Language Model Finetuning", ICLR 2024 (the decomposition; its integer program is
         the plan, its fine-tuning is healing).
Idea:    The best product for what rounding missed, then the best rounding of what the product
         leaves, and again.  It pays where the weight has large directions of its own; without them,
         or at small shapes, as many bytes in plain bits lose less.

Equations -> code
    Algorithm 1    by_turns         L1 L2 = SVD_R(W - Q);  Q = round(W - L1 L2); until errors rise
    Section 3.3    metric_of        errors weighted by row and column: a = sqrt(G), c = sqrt(h),
                                    with F ~ G_r h_j; L1 L2 = SVD_R(a (W - Q) c) / a / c
Shapes:  O out features, I in features, R rank.
Units:   error = tr(A D M D^T), D = W_hat - W, M the metric of the inputs, A that of the outputs.
Needs:   INPUT_GRAM; nothing with metric=weight; OUTPUT_GRADIENT too with metric=fisher.
         Fills: grids with a product (nf3-g64&rank-r16).
Cost:    time O(iterations min(O, I)^3), memory see numerics/weighted_svd.
Differs from the paper:
    1. metric=gram, the default, takes the whole Gram of the inputs instead of its diagonal: the
       product then is the best one for the output; rounding stays element by element.
       metric=fisher is the paper's, with F from what the sweeps gather; metric=weight its plain
       version.
    2. The best pair is returned, the weight rounded without a product included; the authors' code
       returns the last.
    3. The factors are rounded as stored before what they leave is rounded.
Raises:  NumericalError when W, H or G is not finite, or no token or gradient reached the site.
Checked: error against rounding alone, and against one turn; planted directions:
         tests/claims/test_lqlora.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import check_finite
from blockwright.numerics.finite import all_finite
from blockwright.numerics.losses import row_errors
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.weighted_svd import balanced_factors, weighted_svd
from blockwright.types import (
    FactoredSolution,
    Format,
    GridSumFormat,
    LinearMethod,
    Statistic,
    Statistics,
    SumSolution,
)

Metric = Literal["gram", "fisher", "weight"]
LEAST_SHARE = 1e-3
"""Row weights are at least this share of their mean: an output without gradients is still stored.
"""


@dataclass(frozen=True, kw_only=True)
class Lqlora(LinearMethod):
    """Low rank plus quantized."""

    paper: ClassVar[str] = "Guo et al., LQ-LoRA, ICLR 2024"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = GridSumFormat  # type: ignore[type-abstract]

    metric: Metric = "gram"
    iterations: int = 20
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise CandidateError(f"option lqlora@metric: got {self.metric!r}, allowed: {allowed}")
        if self.iterations < 1 or not 0 <= self.damping < float("inf"):
            raise CandidateError(
                f"options lqlora@iterations, damping: got {self.iterations}, {self.damping}; needs"
                " at least 1 iteration and a damping of 0 or more"
            )

    @property
    def needs(self) -> frozenset[Statistic]:
        if self.metric == "weight":
            return frozenset()
        gram = frozenset({Statistic.INPUT_GRAM})
        return gram | {Statistic.OUTPUT_GRADIENT} if self.metric == "fisher" else gram

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> SumSolution:
        check_finite(W_OI)
        if not isinstance(format, GridSumFormat):
            raise CandidateError(
                f"lqlora cannot fill {format.name}: it fills grids with a product, as nf3&rank-r16"
            )
        a_O, M_II = self.metric_of(W_OI, statistics)
        best = self.rounded(W_OI, no_product(W_OI, format), format)
        least = self.error(W_OI, best, a_O, M_II)
        for found in self.by_turns(W_OI, a_O, M_II, format):
            error = self.error(W_OI, found, a_O, M_II)
            if error < least:
                best, least = found, error
        return best

    def by_turns(
        self, W_OI: Tensor, a_O: Tensor, M_II: Tensor, format: GridSumFormat
    ) -> Iterator[SumSolution]:
        """Algorithm 1: the pairs (Q, L1 L2) of every turn, until errors rise."""
        Q_OI, last = torch.zeros_like(W_OI), float("inf")
        for _ in range(self.iterations):
            product = nearest_product(W_OI - Q_OI, a_O, M_II, format)
            found = self.rounded(W_OI, product, format)
            error = self.error(W_OI, found, a_O, M_II)
            if error >= last:
                return
            yield found
            Q_OI, last = found.base.weight(), error

    @staticmethod
    def rounded(W_OI: Tensor, product: FactoredSolution, format: GridSumFormat) -> SumSolution:
        """Q = round(W - L1 L2), beside the product."""
        return SumSolution(base=format.base.nearest(W_OI - product.weight()), plus=product)

    @staticmethod
    def error(W_OI: Tensor, found: SumSolution, a_O: Tensor, M_II: Tensor) -> float:
        D_OI = (found.weight() - W_OI) * a_O[:, None]
        return float(row_errors(D_OI, M_II).sum(dtype=torch.float64))

    def metric_of(self, W_OI: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """a [O] and M [I, I]: the error is tr(diag(a) D M D^T diag(a))."""
        O, I = W_OI.shape  # noqa: E741
        a_O = torch.ones(O, device=W_OI.device)
        if self.metric == "weight":
            return a_O, torch.eye(I, device=W_OI.device)
        if statistics.tokens == 0:
            raise NumericalError("no calibration token reached this site: there is no input Gram")
        H_II = statistics.need(Statistic.INPUT_GRAM)
        if self.metric == "gram":
            return a_O, damped(H_II, self.damping)
        G_O = statistics.need(Statistic.OUTPUT_GRADIENT)
        if not all_finite(G_O) or not G_O.any():
            raise NumericalError("no finite loss gradient reached this site: there is no Fisher")
        a_O = G_O.sqrt()
        return a_O.clamp(min=LEAST_SHARE * float(a_O.mean())), damped(
            H_II.diagonal().diag(), self.damping
        )


def nearest_product(
    R_OI: Tensor, a_O: Tensor, M_II: Tensor, format: GridSumFormat
) -> FactoredSolution:
    """The best product of the format's rank for a remainder R, its factors rounded as stored."""
    rank = format.plus.rank((R_OI.shape[0], R_OI.shape[1]))
    left_OR, right_RI = weighted_svd(R_OI * a_O[:, None], M_II).factors(rank)
    left_OR, right_RI = balanced_factors(left_OR / a_O[:, None], right_RI)
    return stored_product(left_OR, right_RI, format)


def no_product(W_OI: Tensor, format: GridSumFormat) -> FactoredSolution:
    """Factors of zeros."""
    O, I = W_OI.shape  # noqa: E741
    rank = format.plus.rank((O, I))
    return stored_product(W_OI.new_zeros(O, rank), W_OI.new_zeros(rank, I), format)


def stored_product(left_OR: Tensor, right_RI: Tensor, format: GridSumFormat) -> FactoredSolution:
    values = format.plus.values
    return FactoredSolution(left=values.nearest(left_OR), right=values.nearest(right_RI))


METHOD = Lqlora
