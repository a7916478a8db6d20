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

from blockwright.errors import CandidateError
from blockwright.methods.lowrank._factors import equal_rows, input_metric, stored_factors
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.types import (
    FactoredFormat,
    FactoredSolution,
    Format,
    LinearMethod,
    Statistic,
    Statistics,
)

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
            yield stored_factors(found, W_OI, Hd_II, format, equal_rows(W_OI))

    def metric_matrix(self, statistics: Statistics, W_OI: Tensor) -> Tensor:
        """Hd [I, I]: what errors of the weight are multiplied with."""
        if self.metric == "weight":
            return torch.eye(W_OI.shape[1], device=W_OI.device)
        return input_metric(statistics, self.damping, diagonal=self.metric == "diagonal")


METHOD = Svd
