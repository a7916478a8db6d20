"""Builds one variant: a pure function of a weight, its statistics and a candidate."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockwright.errors import FormatError, NumericalError
from blockwright.registry import resolve
from blockwright.types import (
    Candidate,
    GridFormat,
    GridSolution,
    Statistic,
    Statistics,
    VariantRecord,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BuiltVariant:
    """A record with its packed tensors (none when unavailable)."""

    record: VariantRecord
    tensors: Mapping[str, Tensor]


def needs_of(candidates: Collection[Candidate]) -> frozenset[Statistic]:
    """The union of what the candidates' methods read, and the Gram by which every variant is
    judged.
    """
    needs = {Statistic.INPUT_GRAM}
    for candidate in candidates:
        _, methods = resolve(candidate)
        for method in methods:
            needs |= method.needs
    return frozenset(needs)


def variant_inputs(
    *, source: str, candidate: Candidate, statistics: str, surroundings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a variant's tensors; the library's key is the digest of this.

    ``source``: digest of the original weight; ``statistics``: of what the calibration saw;
    ``surroundings``: torch version, dtype, threads and chunk sizes.
    """
    format, methods = resolve(candidate)
    return {
        "source": source,
        "candidate": str(candidate),
        "statistics": statistics,
        "format_version": format.version,
        "method_versions": [method.version for method in methods],
        "surroundings": dict(surroundings),
    }


def build_variant(
    *,
    site: str,
    candidate: Candidate,
    W_OI: Tensor,
    statistics: Statistics | None,
    key: str,
    inputs: Mapping[str, Any],
) -> BuiltVariant:
    """Solve, pack and judge.  What cannot be built is a record with the reason."""
    began = time.monotonic()
    try:
        record, tensors = _solve(candidate, W_OI, statistics, where=site)
    except (NumericalError, FormatError) as error:
        record, tensors = {"unavailable": str(error)}, {}
    return BuiltVariant(
        VariantRecord(
            key=key,
            site=site,
            candidate=str(candidate),
            seconds=time.monotonic() - began,
            tokens=statistics.tokens if statistics else 0,
            inputs=dict(inputs),
            **record,
        ),
        tensors,
    )


def _solve(
    candidate: Candidate, W_OI: Tensor, statistics: Statistics | None, where: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import torch

    from blockwright.numerics.losses import quadratic_error

    format, methods = resolve(candidate)
    if not isinstance(format, GridFormat) or len(methods) != 1:
        raise FormatError(f"{where}: {candidate} cannot be built for one linear weight")
    format.check_shape((W_OI.shape[0], W_OI.shape[1]), where)
    if statistics is None or statistics.tokens == 0:
        raise NumericalError(f"{where}: no calibration token reached it")
    method = methods[0]
    solution = method.solve(W_OI, statistics.only(method.needs), format)
    if not isinstance(solution, GridSolution):
        raise TypeError(f"{candidate}: a grid format needs a GridSolution")
    packed = format.pack(solution.codes_OI, solution.grid, None, torch.bfloat16)
    H_II = statistics.need(Statistic.INPUT_GRAM)
    W_hat = packed.dequantize()
    if not torch.isfinite(W_hat).all():
        raise NumericalError(f"{where}: {candidate} gave values that are not finite")
    error = quadratic_error(W_hat - W_OI, H_II)
    scale = quadratic_error(W_OI, H_II)
    tensors = packed.stored_tensors()
    return {
        "stored_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "error": error,
        "relative_error": error / scale if scale > 0 else 0.0,
        "format_spec": format.spec(),
    }, tensors
