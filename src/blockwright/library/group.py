"""Builds variants of a group: one scale for all members, then each member by itself.

An entry holds, under the names of ``types.variant``, the members' packed tensors and the folded
parameters, and under ``scale`` the t that really stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from blockwright.errors import NumericalError
from blockwright.library.build import BuiltVariant, WantedVariant, build_scaled, variant_inputs
from blockwright.registry import resolve
from blockwright.types import (
    Candidate,
    Group,
    ScalingMethod,
    Statistics,
    VariantRecord,
    packed_name,
    parameter_name,
)

if TYPE_CHECKING:
    from torch import Tensor

SCALE = "scale"
"""Name of t [I], fp32, in an entry."""
FOLD_VERSION = 1
"""Raised whenever folds change: part of the key."""


@dataclass(frozen=True)
class GroupTensors:
    """What a group is made of, as the original has it."""

    weights_OI: Sequence[Tensor]  # noqa: N815 - shape suffix
    """fp32, by member"""
    parameters: Sequence[Tensor]
    """[I] each, in their stored dtype"""


def group_inputs(
    *,
    group: Group,
    source: str,
    candidate: Candidate,
    statistics: str,
    surroundings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides a group's variant; see ``variant_inputs``."""
    inputs = variant_inputs(
        source=source, candidate=candidate, statistics=statistics, surroundings=surroundings
    )
    members = [member.id for member in group.members]
    fold = {"version": FOLD_VERSION, "into": group.parameters, "offsets": group.offsets}
    return {**inputs, "members": members, "fold": fold}


def build_group(
    group: Group,
    tensors: GroupTensors,
    statistics: Statistics | None,
    wanted: WantedVariant,
) -> BuiltVariant:
    """Choose t on the original's inputs, fold it, and fill W t; or a record with the reason."""
    from blockwright.numerics.folds import fold_scale

    if group.refused:
        return unavailable(group, wanted, f"{group.site.id}: {group.refused}")
    if statistics is None or statistics.tokens == 0:
        return unavailable(group, wanted, f"{group.site.id}: no calibration token reached it")
    format, (method, *_) = resolve(wanted.candidate)
    if not isinstance(method, ScalingMethod):
        raise TypeError(f"{wanted.candidate} scales no group")
    try:
        t_I = method.choose_scale(tensors.weights_OI, statistics.only(method.needs), format)
    except NumericalError as error:
        return unavailable(group, wanted, f"{group.site.id}: {error}")
    folded = fold_scale(tensors.parameters, group.offsets, t_I)
    parameters = dict(zip(map(parameter_name, group.parameters), folded.parameters, strict=True))
    fold = {SCALE: folded.t_I, **parameters}
    return fill_group(group, tensors, fold, statistics.scaled(folded.t_I), wanted)


def fill_group(
    group: Group,
    tensors: GroupTensors,
    fold: Mapping[str, Tensor],
    statistics: Statistics | None,
    wanted: WantedVariant,
) -> BuiltVariant:
    """The members filled under a fold that is given; ``statistics`` are of the inputs x / t.

    ``fold``: t and the folded parameters under their names in an entry.
    """
    built: list[BuiltVariant] = []
    for member, W_OI in zip(group.members, tensors.weights_OI, strict=True):
        built.append(build_scaled(member.id, W_OI * fold[SCALE], statistics, wanted))
        if not built[-1].record.available:
            return unavailable(group, wanted, built[-1].record.unavailable)
    return _merged(group, fold, built, wanted)


def unavailable(group: Group, wanted: WantedVariant, reason: str) -> BuiltVariant:
    """The record of a group that cannot be built."""
    record = VariantRecord(
        key=wanted.key,
        site=group.site.id,
        candidate=str(wanted.candidate),
        unavailable=reason,
        inputs=dict(wanted.inputs),
    )
    return BuiltVariant(record, {})


def _merged(
    group: Group,
    fold: Mapping[str, Tensor],
    built: Sequence[BuiltVariant],
    wanted: WantedVariant,
) -> BuiltVariant:
    """One entry of all members; scaling changed no output, so errors are those of the original."""
    import torch

    tensors = dict(fold)
    for member, part in zip(group.members, built, strict=True):
        tensors |= {packed_name(member.id, name): t for name, t in part.tensors.items()}
    records = [part.record for part in built]
    errors = [part.row_errors for part in built if part.row_errors is not None]
    error = sum(record.error for record in records)
    scales = sum(r.error / r.relative_error for r in records if r.relative_error > 0)
    record = replace(
        records[0],
        site=group.site.id,
        candidate=str(wanted.candidate),
        stored_bytes=sum(record.stored_bytes for record in records),
        stored_tensors=sum(record.stored_tensors for record in records),
        error=error,
        relative_error=error / scales if scales > 0 else 0.0,
        seconds=sum(record.seconds for record in records),
    )
    return BuiltVariant(record, tensors, torch.cat(errors))


def member_errors(group: Group, row_errors: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Member id and its squared error by output, from an entry's row errors."""
    parts = row_errors.split([member.shape[0] for member in group.members])
    for member, part in zip(group.members, parts, strict=True):
        yield member.id, part
