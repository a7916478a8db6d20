"""Svd: activation-aware truncated SVD; the directions of the outputs that carry least are dropped.

Paper:   Wang, Zheng, Wan, Zhang, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large
         Language Model Compression", ICLR 2025; the same weight as Kaushal, Vaidhya, Rish, "LORD:
         Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression", 2023.
Idea:    The SVD of W alone keeps what is large in W; what counts is W x.  Whitened by a root of the
         input Gram, the SVD is optimal for the output, and the dropped singular values squared are
         the error.  It wins where inputs lie near a subspace, as activations do, and fails where
         the output needs all directions: then any rank is dear.

Equations -> code
    H = C C^T, U S V^T = svd(W C)      weighted_svd      as the eigenvectors of W H W^T
    W_hat = U_R U_R^T W                factors           = U_R S_R V_R^T C^-1, without the inverse
    error = sum_{k > R} S_k^2          weighted_svd.error
    left = W H right^T (right H right^T)^-1   refit_left   after the right factor is rounded
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; nothing with metric=weight.   Fills: factored formats (rank-*).
Cost:    time O(min(O, I)^3 + O I min(O, I)) once for all ranks, memory see numerics/weighted_svd.
Differs from the paper:
    1. The eigenvectors of W H W^T instead of a Cholesky root and its inverse: full rank gives W
       back whatever H is.  `damping` orders the directions that no calibration input reached by
       the weight itself.
    2. No sequential update and no fine-tuning: refine and heal do these.
    3. Factors have equal column and row norms, and where the values are quantized the left one is
       solved again behind the rounded right one.
    4. metric=diagonal is ASVD's scaling (Yuan et al., 2023) with the root mean square of each
       input; metric=weight is the plain SVD.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_lowrank.py: error = dropped eigenvalues, error against the plain SVD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.weighted_svd import (
    WeightedSvd,
    balanced_factors,
    times_gram,
    weighted_svd,
)
from blockwright.types import (
    FactoredFormat,
    FactoredSolution,
    Format,
    GridFormat,
    LinearMethod,
    Statistic,
    Statistics,
)

JITTER = 1e-10
"""Of the mean diagonal: rows of a right factor may be rounded to the same values."""
Metric = Literal["gram", "diagonal", "weight"]


@dataclass(frozen=True, kw_only=True)
class Svd(LinearMethod):
    """Truncated SVD in the metric of the inputs."""

    paper: ClassVar[str] = "Wang et al., SVD-LLM, ICLR 2025"
    family: ClassVar[str] = "lowrank"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = FactoredFormat  # type: ignore[type-abstract]

    metric: Metric = "gram"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            allowed = ", ".join(get_args(Metric))
            raise CandidateError(f"option svd@metric: got {self.metric!r}, allowed: {allowed}")
        if not 0 <= self.damping < float("inf"):
            raise CandidateError(f"option svd@damping: got {self.damping}, needs 0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset() if self.metric == "weight" else frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> FactoredSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[FactoredSolution]:
        """``solve`` for one format after another, bit for bit; the decomposition is shared."""
        Hd_II = self.metric_matrix(statistics, W_OI)
        found = weighted_svd(W_OI, Hd_II)
        for format in formats:
            if not isinstance(format, FactoredFormat):
                raise CandidateError(f"svd cannot fill {format.name}: it fills factored formats")
            yield stored_factors(found, W_OI, Hd_II, format)

    def metric_matrix(self, statistics: Statistics, W_OI: Tensor) -> Tensor:
        """Hd [I, I]: what errors of the weight are multiplied with."""
        if self.metric == "weight":
            return torch.eye(W_OI.shape[1], device=W_OI.device)
        if statistics.tokens == 0:
            raise NumericalError("no calibration token reached this site: there is no input Gram")
        H_II = statistics.need(Statistic.INPUT_GRAM)
        H_II = H_II.diagonal().diag() if self.metric == "diagonal" else H_II
        return damped(H_II, self.damping)


def stored_factors(
    found: WeightedSvd, W_OI: Tensor, Hd_II: Tensor, format: FactoredFormat
) -> FactoredSolution:
    """The factors of a format's rank, rounded as its values are stored."""
    left_OR, right_RI = balanced_factors(*found.factors(format.rank((len(W_OI), len(Hd_II)))))
    right = format.values.nearest(right_RI)
    if isinstance(format.values, GridFormat):
        left_OR = refit_left(W_OI, right.weight(), Hd_II)
    return FactoredSolution(left=format.values.nearest(left_OR), right=right)


def refit_left(W_OI: Tensor, right_RI: Tensor, Hd_II: Tensor) -> Tensor:
    """left = W H right^T (right H right^T)^-1: the best left factor for a right one."""
    right = right_RI.double()
    image_RI = times_gram(right, Hd_II)
    moment_RR = image_RI @ right.T
    moment_RR.diagonal().add_(JITTER * moment_RR.diagonal().mean())
    L_RR, info = torch.linalg.cholesky_ex(moment_RR)
    if info.item():
        raise NumericalError("the rounded right factor lost rank; store the values in more bits")
    left_RO = torch.cholesky_solve(image_RI @ W_OI.double().T, L_RR)
    return left_RO.T.float().contiguous()


METHOD = Svd
