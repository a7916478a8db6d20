"""Ranges of uniform grids: the scale and zero point of every group of weights.

    W_hat = scale * (code - zero_point),   code = clip(round(W / scale) + zero_point, 0, 2^bits - 1)

Idea:    The scale is rounded to its stored dtype (bfloat16) *before* codes are computed, so that
         what is solved is what is loaded.  Zero is always representable.  A group of zeros gets
         scale 1; a group of one value is exact when bfloat16 holds the value.

Equations -> code
    asymmetric  fit_range     s = shrink (max - min) / (2^b - 1),   z = round(-shrink min / s)
    symmetric   fit_range     s = shrink absmax / Qp,  Qp = 2^(b-1) - 1,   z = 2^(b-1)
    search      search_range  least sum_j importance_j (W_hat_j - W_j)^2 over shrink = 1, .98 ... .6
    offset      fit_offset    s = shrink (max - min) / (2^b - 1),   m = (max + min) / 2 + s / 2,
                              for W_hat = s (code - 2^(b-1)) + m
Shapes:  weights [..., J] in groups of J -> scale and zero point [...], both fp32: bfloat16 values
         and integers.
Differs: an asymmetric scale that bfloat16 rounded up so far that the top or bottom code would stay
         unused is taken one step lower; fitting the decoded weights again then gives the same grid.
Raises:  NumericalError when a weight is not finite or beyond bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blockwright.errors import NumericalError

SCALE_DTYPE = torch.bfloat16
SHRINKS = tuple(1 - 0.02 * step for step in range(21))
FLAT_SCALE = 2.0**-60
"""Scale of a group of one value where an offset holds it: its codes do not matter, and multiples of
the scale must not drown the other groups in a kernel's sums.
"""
CHUNK_ELEMENTS = 1 << 20
"""Weights searched at a time: bounds the working memory of ``search_range`` to about 20 MB."""


def fit_range(W: Tensor, bits: int, symmetric: bool, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and zero point of min-max ranges (times ``shrink``) for groups along the last axis."""
    W = W.float()
    low, high = W.amin(-1), W.amax(-1)
    if symmetric:
        scale, zero_point = _symmetric(low, high, bits, shrink)
    else:
        scale, zero_point = _asymmetric(low.clamp(max=0), high.clamp(min=0), bits, shrink)
    if not torch.isfinite(scale).all():
        raise NumericalError("a weight is not finite, or too large for a bfloat16 scale")
    return _with_exact_groups(scale, zero_point, low, high, symmetric)


def search_range(
    W: Tensor, bits: int, symmetric: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Per group the shrunken range of least squared error; ties keep the widest.

    ``importance`` has the shape of ``W[0]`` (inputs in groups: it is the same for every row).
    """
    rows = max(1, CHUNK_ELEMENTS // max(W[0].numel(), 1))
    found = [_search_chunk(chunk, bits, symmetric, importance) for chunk in torch.split(W, rows)]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def fit_offset(W: Tensor, bits: int, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and offset of levels from the minimum to the maximum of groups along the last axis.

    ``shrink`` draws both towards their middle.  A group of one value is that value, in bfloat16.
    As in ``fit_range``, a scale whose outermost levels would stay unused is taken one step lower.
    """
    W = W.float()
    low, high = W.amin(-1), W.amax(-1)
    middle, half, top = (high + low) / 2, (high - low) / 2 * shrink, (1 << bits) - 1
    scale = _stored(2 * half / top)
    if not (torch.isfinite(scale) & torch.isfinite(_stored(middle))).all():
        raise NumericalError("a weight is not finite, or too large for a bfloat16 scale")
    for _ in range(2):  # once where the scale went up, twice where the offset moved a level, too
        offset = _stored(middle + scale / 2)
        below = ((middle - half - offset) / scale).round() > -(top + 1) // 2
        above = ((middle + half - offset) / scale).round() < top // 2
        scale = torch.where(below | above, next_lower(scale), scale)
    scale = torch.where(half > 0, scale, FLAT_SCALE)
    offset = _stored(torch.where(half > 0, middle + scale / 2, middle))
    return scale, offset


def search_offset(W: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``search_range`` for ``fit_offset``."""
    rows = max(1, CHUNK_ELEMENTS // max(W[0].numel(), 1))
    found = [_search_offset_chunk(part, bits, importance) for part in torch.split(W, rows)]
    return torch.cat([scale for scale, _ in found]), torch.cat([offset for _, offset in found])


def quantize(W: Tensor, scale: Tensor, zero_point: Tensor | int, levels: int) -> Tensor:
    """Nearest codes (fp32, 0 .. levels - 1), ties to even; all broadcast against ``W``."""
    return torch.div(W, scale).round_().add_(zero_point).clamp_(0, levels - 1)


def _search_chunk(
    W: Tensor, bits: int, symmetric: bool, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    def fit(shrink: float) -> tuple[Tensor, Tensor]:
        return fit_range(W, bits, symmetric, shrink)

    def errors(scale: Tensor, zero_point: Tensor) -> Tensor:
        return _range_errors(W.float(), scale, zero_point, bits, importance)

    scale, zero_point = least_of_shrinks(fit, errors)
    return scale, zero_point


def _search_offset_chunk(W: Tensor, bits: int, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    def fit(shrink: float) -> tuple[Tensor, Tensor]:
        return fit_offset(W, bits, shrink)

    def errors(scale: Tensor, offset: Tensor) -> Tensor:
        center = torch.full_like(scale, 1 << (bits - 1))
        return _range_errors(W - offset.unsqueeze(-1), scale, center, bits, importance)

    scale, offset = least_of_shrinks(fit, errors)
    return scale, offset


def least_of_shrinks(
    fit: Callable[[float], tuple[Tensor, ...]], errors: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """Per group what ``fit`` gives for the shrink of least error; ties keep the widest."""
    best = fit(1.0)
    least = errors(*best)
    for shrink in SHRINKS[1:]:
        tried = fit(shrink)
        error = errors(*tried)
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
    return best


def _range_errors(
    W: Tensor, scale: Tensor, zero_point: Tensor, bits: int, importance: Tensor | None
) -> Tensor:
    scale, zero_point = scale.unsqueeze(-1), zero_point.unsqueeze(-1)
    error = quantize(W, scale, zero_point, 1 << bits).sub_(zero_point).mul_(scale).sub_(W).square_()
    return (error if importance is None else error.mul_(importance)).sum(-1)


def _symmetric(low: Tensor, high: Tensor, bits: int, shrink: float) -> tuple[Tensor, Tensor]:
    absmax = torch.maximum(-low, high)
    scale = _stored(absmax * shrink / ((1 << (bits - 1)) - 1))
    return scale, torch.full_like(scale, 1 << (bits - 1))


def _asymmetric(low: Tensor, high: Tensor, bits: int, shrink: float) -> tuple[Tensor, Tensor]:
    top = (1 << bits) - 1
    low, high = low * shrink, high * shrink
    scale = _stored((high - low) / top)
    for _ in range(
        2
    ):  # once where rounding went up; twice where both ends then round down on a tie
        unused = (high / scale).round() + (-low / scale).round() < top
        scale = torch.where(unused, next_lower(scale), scale)
    return scale, (-low / scale).round().clamp(0, top)


def _with_exact_groups(
    scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Groups of zeros (scale 1) and of one value that bfloat16 holds (scale = |value|)."""
    value = low.abs()
    exact = (low == high) & (_stored(value) == value)
    zero = scale == 0
    scale = torch.where(exact, value, scale)
    scale = torch.where(zero, torch.ones_like(scale), scale)
    if not symmetric:
        zero_point = torch.where(exact, (low < 0).to(zero_point.dtype), zero_point)
        zero_point = torch.where(zero, torch.zeros_like(zero_point), zero_point)
    return scale, zero_point


def _stored(scale: Tensor) -> Tensor:
    return scale.to(SCALE_DTYPE).float()


def next_lower(scale: Tensor) -> Tensor:
    """The next smaller bfloat16 of positive numbers; 0 stays 0."""
    bits = scale.to(SCALE_DTYPE).view(torch.int16)
    return (bits - (bits > 0).to(torch.int16)).view(SCALE_DTYPE).float()
