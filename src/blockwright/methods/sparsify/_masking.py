"""What the mask methods share: the option ``refit``, and the solution of a mask."""

from __future__ import annotations

from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.finite import all_finite
from blockwright.numerics.masked_refit import masked_refit
from blockwright.numerics.pruning_sweep import Pruner
from blockwright.types import (
    Format,
    GridFormat,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)

FEW_TOKENS, FEW_TOKENS_DAMPING = 2, 0.1
"""With fewer tokens than twice the inputs, refits damp by a tenth of the mean diagonal at least:
with half as many as inputs, 0.01 made Wanda's mask 1.33 times worse, 0.1 makes it 0.70 of it."""


def check_damping(method: str, damping: float) -> None:
    """Raise ``CandidateError`` unless the damping is a number above 0."""
    if not 0 < damping < float("inf"):
        raise CandidateError(f"option {method}@damping: got {damping}, needs a number above 0")


def masked_format(method: str, format: Format) -> MaskedFormat:
    """The format, checked to be one of zeros."""
    if not isinstance(format, MaskedFormat):
        raise CandidateError(f"{method} cannot fill {format.name}: it fills sparse formats")
    return format


def check_finite(W_OI: Tensor) -> None:
    """Raise ``NumericalError`` for a weight with NaN or infinity."""
    if not all_finite(W_OI):
        raise NumericalError("the weight holds NaN or infinity")


def input_gram(statistics: Statistics) -> Tensor:
    """H; raises ``NumericalError`` when no token reached the site."""
    if statistics.tokens == 0:
        raise NumericalError("no calibration token reached this site: there is no input Gram")
    return statistics.need(Statistic.INPUT_GRAM)


def refit_damping(damping: float, statistics: Statistics, in_features: int) -> float:
    """What a refit adds to the diagonal: more, where few tokens say little of the correlations."""
    few = statistics.tokens < FEW_TOKENS * in_features
    return max(damping, FEW_TOKENS_DAMPING) if few else damping


def masked_solution(
    W_OI: Tensor, mask_OI: Tensor, format: MaskedFormat, statistics: Statistics, damping: float
) -> MaskedSolution:
    """The kept values, refitted with ``damping`` (0: as they are), rounded as they are stored."""
    if damping:
        damping = refit_damping(damping, statistics, W_OI.shape[1])
        W_OI = masked_refit(W_OI, input_gram(statistics), mask_OI, damping)
    kept_OK = W_OI[mask_OI].view(len(W_OI), -1)
    return MaskedSolution(mask_OI=mask_OI, values=format.values.nearest(kept_OK))


def refitted_solution(
    W_OI: Tensor,
    mask_OI: Tensor,
    format: MaskedFormat,
    statistics: Statistics,
    damping: float,
    pruner: Pruner | None = None,
) -> MaskedSolution:
    """The kept values, refitted; on a grid, rounded in a sweep (``pruner``: of H, if known)."""
    H_II = input_gram(statistics)
    damping = refit_damping(damping, statistics, W_OI.shape[1])
    kept_OI = masked_refit(W_OI, H_II, mask_OI, damping)
    values = format.values
    if isinstance(values, GridFormat):
        pruner = pruner or Pruner.of(H_II, damping)
        return pruner.quantize(kept_OI, format, values, mask_OI)
    kept_OK = kept_OI[mask_OI].view(len(W_OI), -1)
    return MaskedSolution(mask_OI=mask_OI, values=values.nearest(kept_OK))
