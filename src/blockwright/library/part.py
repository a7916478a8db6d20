"""Builds narrower variants of a part: which channels stay, and the matrix behind them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from blockwright.errors import NumericalError
from blockwright.library.build import BuiltVariant, WantedVariant
from blockwright.registry import resolve
from blockwright.types import Part, Statistic, Statistics, VariantRecord, WidthFormat, WidthMethod

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHANNELS, WEIGHT = "channels", "weight"
"""Names in an entry: int64 [K], and the writer's weight [O, K] in its stored dtype."""


def build_narrow(
    part: Part,
    W_OI: Tensor,
    dtype: torch.dtype,
    statistics: Statistics | None,
    wanted: WantedVariant,
) -> BuiltVariant:
    """Choose channels and fit the writer's weight, fp32 [O, I]; or a record with the reason.

    ``statistics`` are of the writer's inputs; ``stored_bytes`` of the record are left to who knows
    the other matrices.
    """
    format, (method,) = resolve(wanted.candidate)
    if not isinstance(format, WidthFormat) or not isinstance(method, WidthMethod):
        raise TypeError(f"{wanted.candidate} narrows no part")
    if part.channels is None or part.not_narrower:
        return _unavailable(part, wanted, part.not_narrower or "only an FFN has channels")
    if statistics is None or statistics.tokens == 0:
        return _unavailable(part, wanted, "no calibration token reached it")
    began, kept = time.monotonic(), format.kept(part.channels.width)
    try:
        kept_K, W_OK = method.narrow(W_OI, statistics.only(method.needs), kept)
        error, energy = _judged(W_OI, kept_K, W_OK, statistics.need(Statistic.INPUT_GRAM))
    except NumericalError as reason:
        return _unavailable(part, wanted, str(reason))
    record = VariantRecord(
        key=wanted.key,
        site=part.site.id,
        candidate=str(wanted.candidate),
        error=error,
        relative_error=error / energy if energy > 0 else 0.0,
        tokens=statistics.tokens,
        seconds=time.monotonic() - began,
        format_spec=format.spec(),
        inputs=dict(wanted.inputs),
    )
    return BuiltVariant(record, {CHANNELS: kept_K, WEIGHT: W_OK.to(dtype)})


def _judged(W_OI: Tensor, kept_K: Tensor, W_OK: Tensor, C_II: Tensor) -> tuple[float, float]:
    """Squared output error, and the squared output."""
    from blockwright.numerics.losses import quadratic_error

    difference_OI = -W_OI
    difference_OI[:, kept_K] += W_OK
    if not W_OK.isfinite().all():
        raise NumericalError("the matrix behind the channels is not finite")
    return quadratic_error(difference_OI, C_II), quadratic_error(W_OI, C_II)


def _unavailable(part: Part, wanted: WantedVariant, reason: str) -> BuiltVariant:
    record = VariantRecord(
        key=wanted.key,
        site=part.site.id,
        candidate=str(wanted.candidate),
        unavailable=f"{part.site.id}: {reason}",
        inputs=dict(wanted.inputs),
    )
    return BuiltVariant(record, {})
