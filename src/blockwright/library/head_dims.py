"""Builds attention whose heads have fewer dimensions: which stay, and other values and outputs.

An entry holds the dimensions of queries and keys that stay, how many values have, and the weights
of all four matrices under the names of ``types.variant``: plain, or packed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from blockwright.errors import NumericalError
from blockwright.library.build import BuiltVariant, WantedVariant, build_filled
from blockwright.library.part import WEIGHT, PartTensors, unavailable, why_not
from blockwright.registry import resolve
from blockwright.types import (
    HeadDimFormat,
    HeadDims,
    HeadWeights,
    LinearMethod,
    NarrowHeads,
    Part,
    Statistics,
    VariantRecord,
    WidthMethod,
    packed_name,
)

if TYPE_CHECKING:
    from torch import Tensor

KEPT, VALUES = "kept", "values"
"""Names in an entry: int64 dimensions of queries and keys that stay, and of values, the first."""


def build_head_dims(part: Part, tensors: PartTensors, wanted: WantedVariant) -> BuiltVariant:
    """Choose and solve, then fill the smaller matrices where they have a format; or a record with
    the reason.  ``stored_bytes`` of plain matrices are left to who knows them.
    """
    import torch

    format, (method, *_) = resolve(wanted.candidate)
    if not isinstance(format, HeadDimFormat) or not isinstance(method, WidthMethod):
        raise TypeError(f"{wanted.candidate} narrows no heads")
    reason, heads = why_not(part, format), part.heads
    if reason or heads is None:
        return unavailable(part, wanted, reason)
    if any(site.bias for site in part.members if site.id == heads.value):
        return unavailable(part, wanted, "its values have a bias")
    seen = tensors.statistics.get(heads.value)
    if seen is None or seen.tokens == 0:
        return unavailable(part, wanted, "no calibration token reached it")
    began, dims = time.monotonic(), format.kept(heads.size)
    try:
        found = method.narrow_heads(_by_head(heads, tensors), seen.only(method.needs), dims)
    except NumericalError as error:
        return unavailable(part, wanted, str(error))
    record = VariantRecord(
        key=wanted.key,
        site=part.site.id,
        candidate=str(wanted.candidate),
        tokens=seen.tokens,
        seconds=time.monotonic() - began,
        format_spec=format.spec(),
        inputs=dict(wanted.inputs),
    )
    entry = {KEPT: torch.tensor(found.kept), VALUES: torch.arange(dims)}
    weights = _weights(heads, tensors, found)
    if format.values is None:
        plain = {packed_name(n, WEIGHT): W.to(tensors.dtype) for n, W in weights.items()}
        return BuiltVariant(record, entry | plain)
    return _filled(part, tensors, wanted, BuiltVariant(record, entry), weights)


def dims_of(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Linear -> the dimensions of its heads that stay, from an entry; none where it has none."""
    if part.heads is None or KEPT not in tensors:
        return {}
    heads = part.heads
    kept, values = (tuple(tensors[name].tolist()) for name in (KEPT, VALUES))
    return {heads.query: kept, heads.key: kept, heads.value: values, heads.output: values}


def _by_head(heads: HeadDims, tensors: PartTensors) -> HeadWeights:
    weights, by_head = tensors.weights_OI, (-1, heads.size)
    return HeadWeights(
        query_HDI=weights[heads.query].unflatten(0, by_head),
        key_GDI=weights[heads.key].unflatten(0, by_head),
        value_GDI=weights[heads.value].unflatten(0, by_head),
        output_OHD=weights[heads.output].unflatten(1, by_head),
        units=heads.units,
    )


def _weights(heads: HeadDims, tensors: PartTensors, found: NarrowHeads) -> dict[str, Tensor]:
    """The four smaller matrices [out, in], fp32, by site."""
    all_heads, kept = _by_head(heads, tensors), list(found.kept)
    return {
        heads.query: all_heads.query_HDI[:, kept].flatten(0, 1).contiguous(),
        heads.key: all_heads.key_GDI[:, kept].flatten(0, 1).contiguous(),
        heads.value: found.value_GRI.flatten(0, 1).contiguous(),
        heads.output: found.output_OHR.flatten(1).contiguous(),
    }


def _filled(
    part: Part,
    tensors: PartTensors,
    wanted: WantedVariant,
    chosen: BuiltVariant,
    weights: Mapping[str, Tensor],
) -> BuiltVariant:
    """The smaller matrices in the format of the candidate's values."""
    format, (_, method) = resolve(wanted.candidate)
    if not isinstance(format, HeadDimFormat) or format.values is None or part.heads is None:
        raise TypeError(f"{wanted.candidate} fills no values")
    if not isinstance(method, LinearMethod):
        raise TypeError(f"{wanted.candidate}: {method} fills no values")
    packed, built = dict(chosen.tensors), list[VariantRecord]()
    for site in part.members:
        seen = _seen(part.heads, site.id, tensors, weights)
        filled = build_filled(site.id, weights[site.id], seen, wanted, (format.values, method))
        if not filled.record.available:
            return unavailable(part, wanted, filled.record.unavailable)
        built.append(filled.record)
        packed |= {packed_name(site.id, name): t for name, t in filled.tensors.items()}
    stored = sum(record.stored_bytes for record in built)
    count = sum(record.stored_tensors for record in built)
    return BuiltVariant(replace(chosen.record, stored_bytes=stored, stored_tensors=count), packed)


def _seen(
    heads: HeadDims, site: str, tensors: PartTensors, weights: Mapping[str, Tensor]
) -> Statistics:
    """What a smaller matrix sees, where that is known: outputs have other inputs than before, and
    theirs are taken as if attention mixed no tokens.
    """
    import torch

    seen = tensors.statistics[site]
    if site != heads.output:
        return replace(seen, output_gradient=None)
    W_VI = weights[heads.value]
    values = tensors.statistics[heads.value].input_gram
    groups = weights[site].shape[1] // len(W_VI)
    if values is None:
        return seen
    rank = len(W_VI) * heads.size // tensors.weights_OI[heads.value].shape[0]
    repeated = W_VI.unflatten(0, (-1, rank)).repeat_interleave(groups, 0).flatten(0, 1)
    gram = repeated @ values @ repeated.T
    return Statistics(tokens=seen.tokens, input_gram=torch.as_tensor(gram))
