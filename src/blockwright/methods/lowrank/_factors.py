"""What methods of low rank share: the metric of the errors, and factors rounded as stored.

Equations -> code
    left = W Hd right^T (right Hd right^T)^-1   refit_left   the best left factor for a right one
Shapes:  O out features, I in features, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite
from blockwright.numerics.interpolation import is_kept, places
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.weighted_svd import WeightedSvd, balanced_factors, times_gram
from blockwright.types import (
    FactoredFormat,
    FactoredSolution,
    GridFormat,
    InterpolatedFormat,
    InterpolatedSolution,
    Statistic,
    Statistics,
)

LEAST_SHARE = 1e-3
"""Row weights are at least this share of their mean: an output without gradients is still stored.
"""
JITTER = 1e-10
"""Of the mean diagonal: rows of a right factor may be rounded to the same values."""


def input_metric(statistics: Statistics, damping: float, *, diagonal: bool = False) -> Tensor:
    """Hd [I, I] = H + damping mean(diag H) I: what errors of the weight are multiplied with."""
    if statistics.tokens == 0:
        raise NumericalError("no calibration token reached this site: there is no input Gram")
    H_II = statistics.need(Statistic.INPUT_GRAM)
    return damped(H_II.diagonal().diag() if diagonal else H_II, damping)


def stored_factors(
    found: WeightedSvd, W_OI: Tensor, Hd_II: Tensor, format: FactoredFormat, a_O: Tensor
) -> FactoredSolution:
    """The factors of a format's rank, rounded as its values are stored; ``found`` is of the rows
    a W.
    """
    rank = format.rank((W_OI.shape[0], W_OI.shape[1]))
    left_OR, right_RI = found.factors(rank)
    left_OR, right_RI = balanced_factors(left_OR / a_O[:, None], right_RI)
    right = format.values.nearest(right_RI)
    if isinstance(format.values, GridFormat):
        left_OR = refit_left(W_OI, right.weight(), Hd_II)
    return FactoredSolution(left=format.values.nearest(left_OR), right=right)


def stored_rows(
    W_OI: Tensor,
    Hd_II: Tensor,
    format: InterpolatedFormat,
    kept_R: Tensor,
    rows_RI: Tensor,
    mixing_MR: Tensor,
) -> InterpolatedSolution:
    """Rows that stand at the outputs ``kept_R``, and what the other M mix of them, rounded as the
    format's values are stored.
    """
    kept = format.values.nearest(rows_RI)
    if isinstance(format.values, GridFormat):
        mixing_MR = refit_left(W_OI[~is_kept(len(W_OI), kept_R)], kept.weight(), Hd_II)
    return InterpolatedSolution(
        place_O=places(len(W_OI), kept_R), kept=kept, mixing=format.values.nearest(mixing_MR)
    )


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


def equal_rows(W_OI: Tensor) -> Tensor:
    """Weights [O] of the outputs that weigh all alike."""
    return torch.ones(len(W_OI), device=W_OI.device)


def rows_by_gradient(statistics: Statistics) -> Tensor:
    """a [O] = sqrt(G): tr(diag(a) D H D^T diag(a)) is the second-order loss."""
    G_O = statistics.need(Statistic.OUTPUT_GRADIENT)
    if not all_finite(G_O) or not G_O.any():
        raise NumericalError("no finite loss gradient reached this site: there is no Fisher")
    a_O = G_O.sqrt()
    return a_O.clamp(min=LEAST_SHARE * float(a_O.mean()))
