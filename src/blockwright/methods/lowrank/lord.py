"""Lord: keep the main subspace of a linear's outputs, and project the weight onto it.

Paper:   Kaushal, Vaidhya, Rish, "LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot
         Compression", 2023.
Idea:    The outputs of a trained linear lie near a subspace, whatever the weight itself looks like.
         The eigenvectors of their second moment span it; projected onto R of them, the weight has
         rank R and loses the output energy of those left out.  Rank is not size: two factors of
         0.6 of the ranks of a square weight are larger than the weight.  `id-*` stores the same
         weight as R of its rows and a mixing of them, and is always smaller.

Equations -> code
    S = E[y y^T] = W H W^T             weighted_svd    no capture beside the input Gram
    W_hat = V_R V_R^T W                stored_factors  left = V_R, right = V_R^T W
    W_hat_p = rows of W_hat, p = pivots of V_R^T       stored_rows
    W_hat = T W_hat_p,  T = V_R V_p^-1                 mix_rows
    G^1/2 W in place of W              fisher=true     second-order loss tr(G D H D^T)
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; OUTPUT_GRADIENT too with fisher=true.   Fills: rank-*, id-*.
Cost:    time O(min(O, I)^3 + O I min(O, I)) once for all ranks, O(O R^2) more for id; memory see
         numerics/weighted_svd.
Differs from the paper:
    1. The second moment of the outputs in place of their covariance, and no change of the bias: a
       linear may have none, and what loads the folder would have to hold one.  On the bundled
       model that would leave 0.96 to 0.99 of the error (docs/decisions.md).
    2. The same weight as `svd` at its defaults; what is here and not there: id formats, and rows
       weighed by the gradient of the loss (fisher=true).
    3. Ranks are the plan's choice, site by site, from their measured errors.
    4. Where values are quantized, the left factor (the mixing) is solved again behind the rounded
       right one (the kept rows).
Raises:  NumericalError when W, H or G is not finite, or no token or gradient reached the site.
Checked: tests/claims/test_lowrank.py: error = dropped eigenvalues (with the covariance too), the id
         form against the pair, error against the plain SVD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.lowrank._factors import (
    equal_rows,
    input_metric,
    rows_by_gradient,
    stored_factors,
    stored_rows,
)
from blockwright.numerics.interpolation import mix_rows, pivot_rows
from blockwright.numerics.weighted_svd import WeightedSvd, weighted_svd
from blockwright.types import (
    FactoredFormat,
    FactoredSolution,
    Format,
    InterpolatedFormat,
    InterpolatedSolution,
    LinearMethod,
    RankedFormat,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Lord(LinearMethod):
    """Projection onto the main subspace of the outputs."""

    paper: ClassVar[str] = "Kaushal et al., LORD, 2023"
    family: ClassVar[str] = "lowrank"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = RankedFormat  # type: ignore[type-abstract]

    fisher: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise CandidateError(f"option lord@damping: got {self.damping}, needs 0 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        gradient = {Statistic.OUTPUT_GRADIENT} if self.fisher else set()
        return frozenset({Statistic.INPUT_GRAM, *gradient})

    def solve(
        self, W_OI: Tensor, statistics: Statistics, format: Format
    ) -> FactoredSolution | InterpolatedSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[FactoredSolution | InterpolatedSolution]:
        """``solve`` for one format after another, bit for bit; the decomposition is shared."""
        Hd_II = input_metric(statistics, self.damping)
        a_O = self.row_weights(statistics, W_OI)
        found = weighted_svd(W_OI * a_O[:, None], Hd_II)
        for format in formats:
            if isinstance(format, FactoredFormat):
                yield stored_factors(found, W_OI, Hd_II, format, a_O)
            elif isinstance(format, InterpolatedFormat):
                yield stored_projection(found, W_OI, Hd_II, format, a_O)
            else:
                raise CandidateError(f"lord cannot fill {format.name}: it fills rank-* and id-*")

    def row_weights(self, statistics: Statistics, W_OI: Tensor) -> Tensor:
        """a [O]: the error is tr(diag(a) D H D^T diag(a))."""
        return rows_by_gradient(statistics) if self.fisher else equal_rows(W_OI)


def stored_projection(
    found: WeightedSvd, W_OI: Tensor, Hd_II: Tensor, format: InterpolatedFormat, a_O: Tensor
) -> InterpolatedSolution:
    """R rows of the projected weight, and how the others mix them."""
    basis_OR, right_RI = found.factors(format.rank((W_OI.shape[0], W_OI.shape[1])))
    left_OR = basis_OR / a_O[:, None]
    kept_R = pivot_rows(left_OR)[: len(right_RI)]
    rows_RI = left_OR[kept_R] @ right_RI
    return stored_rows(W_OI, Hd_II, format, kept_R, rows_RI, mix_rows(left_OR, kept_R))


METHOD = Lord
