"""Builds narrower variants of a part: which channels stay, and the matrix behind them.

An entry holds the channels and the writer's weight; where the smaller matrices are stored in
another format, their packed tensors under the names of ``types.variant`` in place of that weight.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from blockwright.errors import NumericalError
from blockwright.library.build import BuiltVariant, WantedVariant, build_filled
from blockwright.registry import resolve
from blockwright.types import (
    Channels,
    HeadDimFormat,
    LinearMethod,
    Part,
    Statistic,
    Statistics,
    VariantRecord,
    WidthFormat,
    WidthMethod,
    packed_name,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHANNELS, WEIGHT = "channels", "weight"
"""Names in an entry: int64 [K], and the writer's weight [O, K] in its stored dtype."""


@dataclass(frozen=True)
class PartTensors:
    """A part's matrices as the original has them, and what they saw."""

    weights_OI: Mapping[str, Tensor]  # noqa: N815 - shape suffix
    """fp32, by site"""
    dtype: torch.dtype
    """The writer's, as it is stored."""
    statistics: Mapping[str, Statistics]
    """By site."""


def build_narrow(part: Part, tensors: PartTensors, wanted: WantedVariant) -> BuiltVariant:
    """Choose channels, fit the writer's weight, fill the smaller matrices where they have a format;
    or a record with the reason.  ``stored_bytes`` of plain matrices are left to who knows them.
    """
    format, (method, *_) = resolve(wanted.candidate)
    if not isinstance(format, WidthFormat) or not isinstance(method, WidthMethod):
        raise TypeError(f"{wanted.candidate} narrows no part")
    reason = why_not(part, format)
    if reason or part.channels is None:
        return unavailable(part, wanted, reason)
    seen = tensors.statistics.get(part.channels.writer)
    if seen is None or seen.tokens == 0:
        return unavailable(part, wanted, "no calibration token reached it")
    began, kept = time.monotonic(), format.kept(part.channels.width)
    W_OI = tensors.weights_OI[part.channels.writer]
    readers = _readers(part.channels, tensors)
    try:
        kept_K, W_OK = method.narrow(
            W_OI, seen.only(method.needs), kept, columns=part.channels.columns, readers=readers
        )
        inputs = part.channels.inputs(kept_K.tolist())
        facts = _judged(W_OI, inputs, W_OK, seen.need(Statistic.INPUT_GRAM))
    except NumericalError as reason:
        return unavailable(part, wanted, str(reason))
    record = VariantRecord(
        key=wanted.key,
        site=part.site.id,
        candidate=str(wanted.candidate),
        tokens=seen.tokens,
        seconds=time.monotonic() - began,
        format_spec=format.spec(),
        inputs=dict(wanted.inputs),
        **facts,
    )
    if format.values is None:
        return BuiltVariant(record, {CHANNELS: kept_K, WEIGHT: W_OK.to(tensors.dtype)})
    return _filled(part, tensors, wanted, BuiltVariant(record, {CHANNELS: kept_K}), W_OK)


def why_not(part: Part, format: WidthFormat) -> str:
    """Why a part cannot be made narrower in a format; empty when it can."""
    if isinstance(format, HeadDimFormat):
        return part.no_dims or ("" if part.heads else "it has no heads")
    return part.not_narrower or ("" if part.channels else "it has no channels")


def _filled(
    part: Part, tensors: PartTensors, wanted: WantedVariant, chosen: BuiltVariant, W_OK: Tensor
) -> BuiltVariant:
    """The smaller matrices in the format of the candidate's values."""
    import torch

    format, (_, method) = resolve(wanted.candidate)
    if not isinstance(format, WidthFormat) or format.values is None or part.channels is None:
        raise TypeError(f"{wanted.candidate} fills no values")
    if not isinstance(method, LinearMethod):
        raise TypeError(f"{wanted.candidate}: {method} fills no values")
    kept_K, packed, built = chosen.tensors[CHANNELS], dict(chosen.tensors), list[VariantRecord]()
    for site in part.members:
        seen = tensors.statistics.get(site.id)
        if seen is None:
            return unavailable(part, wanted, "no calibration token reached it")
        if site.id == part.channels.writer:
            inputs_J = torch.tensor(part.channels.inputs(kept_K.tolist()))
            W, seen = W_OK, seen.of_inputs(inputs_J)
        else:
            rows_R = torch.tensor(part.channels.rows(site.id, kept_K.tolist()))
            W, seen = tensors.weights_OI[site.id][rows_R].contiguous(), seen.of_outputs(rows_R)
        filled = build_filled(site.id, W, seen, wanted, (format.values, method))
        if not filled.record.available:
            return unavailable(part, wanted, filled.record.unavailable)
        built.append(filled.record)
        packed |= {packed_name(site.id, name): t for name, t in filled.tensors.items()}
    stored = sum(record.stored_bytes for record in built)
    count = sum(record.stored_tensors for record in built)
    return BuiltVariant(replace(chosen.record, stored_bytes=stored, stored_tensors=count), packed)


def _readers(channels: Channels, tensors: PartTensors) -> list[Tensor]:
    """Matrices [channels, D] that make a channel from a row each; none where it has several."""
    found: list[Tensor] = []
    for reader, (pieces, interleaved) in channels.readers.items():
        shape = (channels.width, pieces) if interleaved else (pieces, channels.width)
        parts = tensors.weights_OI[reader].unflatten(0, shape)
        found += (parts.transpose(0, 1) if interleaved else parts).unbind(0)
    return found if channels.columns == 1 else []


def _judged(W_OI: Tensor, inputs: list[int], W_OK: Tensor, C_II: Tensor) -> dict[str, Any]:
    """Squared output error of what is left out, before values are rounded."""
    from blockwright.numerics.losses import quadratic_error

    if not W_OK.isfinite().all():
        raise NumericalError("the matrix behind the channels is not finite")
    difference_OI = -W_OI
    difference_OI[:, inputs] += W_OK
    error, energy = quadratic_error(difference_OI, C_II), quadratic_error(W_OI, C_II)
    return {"error": error, "relative_error": error / energy if energy > 0 else 0.0}


def unavailable(part: Part, wanted: WantedVariant, reason: str) -> BuiltVariant:
    """The record of a variant that cannot be built."""
    record = VariantRecord(
        key=wanted.key,
        site=part.site.id,
        candidate=str(wanted.candidate),
        unavailable=f"{part.site.id}: {reason.removeprefix(part.site.id + ': ')}",
        inputs=dict(wanted.inputs),
    )
    return BuiltVariant(record, {})
