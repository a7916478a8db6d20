"""Builds variants: a pure function of a weight, its statistics and the candidates."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from blockwright.errors import FormatError, NumericalError
from blockwright.registry import resolve
from blockwright.types import (
    Candidate,
    Format,
    GridSolution,
    LinearMethod,
    Method,
    PackedFormat,
    Solution,
    Statistic,
    Statistics,
    VariantRecord,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WantedVariant:
    """One variant that is asked for."""

    candidate: Candidate
    key: str
    inputs: Mapping[str, Any]
    """What the key was made from."""


@dataclass(frozen=True)
class BuiltVariant:
    """A record with its packed tensors (none when unavailable)."""

    record: VariantRecord
    tensors: Mapping[str, Tensor]
    row_errors: Tensor | None = None
    """[O] squared error of every output, mean over tokens."""


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
        "format": format.spec(),
        "method_versions": [method.version for method in methods],
        "surroundings": dict(surroundings),
    }


def build_variants(
    site: str, W_OI: Tensor, statistics: Statistics | None, wanted: Iterable[WantedVariant]
) -> Iterator[BuiltVariant]:
    """Solve, pack and judge; what cannot be built is a record with the reason.

    Candidates of one method are solved together, so that it can share its work (GPTQ factors the
    Gram once); their results are the same bits as one by one.
    """
    by_method: dict[LinearMethod | None, list[_Job]] = {}
    for item in wanted:
        job = _Job(site, item, *_filling(*resolve(item.candidate)))
        by_method.setdefault(job.method, []).append(job)
    layer = _Layer(W_OI, statistics)
    for method, jobs in by_method.items():
        yield from _solve_jobs(method, jobs, layer)


def build_scaled(
    site: str, W_OI: Tensor, statistics: Statistics | None, wanted: WantedVariant
) -> BuiltVariant:
    """One member of a group, by the methods behind the scaling one; ``W_OI`` is scaled already."""
    format, (_, *methods) = resolve(wanted.candidate)
    job = _Job(site, wanted, *_filling(format, methods))
    return next(_solve_jobs(job.method, [job], _Layer(W_OI, statistics)))


def build_filled(
    site: str,
    W_OI: Tensor,
    statistics: Statistics,
    wanted: WantedVariant,
    filling: tuple[PackedFormat, LinearMethod],
) -> BuiltVariant:
    """A matrix of a part, by a format and a method of its own."""
    job = _Job(site, wanted, *filling)
    return next(_solve_jobs(job.method, [job], _Layer(W_OI, statistics)))


@dataclass(frozen=True)
class _Layer:
    """A weight and what reached it: what every candidate of the site is judged against."""

    W_OI: Tensor
    statistics: Statistics | None

    @property
    def tokens(self) -> int:
        return self.statistics.tokens if self.statistics else 0

    @property
    def H_II(self) -> Tensor:
        if self.statistics is None:
            raise ValueError("no statistics to judge by")
        return self.statistics.need(Statistic.INPUT_GRAM)

    @cached_property
    def output_energy(self) -> float:
        """tr(W H W^T): the squared output, summed over outputs, mean over tokens."""
        from blockwright.numerics.losses import quadratic_error

        return quadratic_error(self.W_OI, self.H_II)


@dataclass(frozen=True)
class _Job:
    """One candidate at one site."""

    site: str
    wanted: WantedVariant
    format: PackedFormat | None
    method: LinearMethod | None

    def unavailable(self, reason: str, layer: _Layer) -> BuiltVariant:
        return BuiltVariant(self._record(layer, 0.0, {"unavailable": reason}), {})

    def built(self, solution: Solution, layer: _Layer, seconds: float) -> BuiltVariant:
        """Pack a solution and judge it by its squared output error."""
        facts, tensors, errors_O = _packed(self, solution, layer)
        return BuiltVariant(self._record(layer, seconds, facts), tensors, errors_O)

    def _record(self, layer: _Layer, seconds: float, facts: Mapping[str, Any]) -> VariantRecord:
        return VariantRecord(
            key=self.wanted.key,
            site=self.site,
            candidate=str(self.wanted.candidate),
            seconds=seconds,
            tokens=layer.tokens,
            inputs=dict(self.wanted.inputs),
            **facts,
        )

    def check(self, W_OI: Tensor) -> str:
        """Why it cannot be tried; empty when it can."""
        if self.format is None or self.method is None:
            return f"{self.site}: {self.wanted.candidate} is no candidate for one linear weight"
        try:
            self.format.check_shape((W_OI.shape[0], W_OI.shape[1]), self.site)
        except FormatError as error:
            return str(error)
        return ""


def _filling(
    format: Format, methods: Sequence[Method]
) -> tuple[PackedFormat | None, LinearMethod | None]:
    """Both, or neither: ``resolve`` has seen to it that the method fills the format."""
    if isinstance(format, PackedFormat) and len(methods) == 1:
        method = methods[0]
        if isinstance(method, LinearMethod):
            return format, method
    return None, None


def _solve_jobs(
    method: LinearMethod | None, jobs: Sequence[_Job], layer: _Layer
) -> Iterator[BuiltVariant]:
    pending = []
    for job in jobs:
        reason = job.check(layer.W_OI)
        if layer.tokens == 0:
            reason = reason or f"{job.site}: no calibration token reached it"
        if reason:
            yield job.unavailable(reason, layer)
        else:
            pending.append(job)
    while pending and method is not None and layer.statistics is not None:
        formats = [job.format for job in pending if job.format is not None]
        solutions = method.solve_each(layer.W_OI, layer.statistics.only(method.needs), formats)
        while pending:
            job, began = pending.pop(0), time.monotonic()
            try:
                solution = next(solutions)
                yield job.built(solution, layer, time.monotonic() - began)
            except NumericalError as error:
                yield job.unavailable(f"{job.site}: {error}", layer)
                break


def _packed(
    job: _Job, solution: Solution, layer: _Layer
) -> tuple[dict[str, Any], Mapping[str, Tensor], Tensor]:
    import torch

    from blockwright.numerics.losses import row_errors

    if job.format is None:
        raise TypeError(f"{job.wanted.candidate} has no packed format")
    packed = job.format.pack(solution, None, torch.bfloat16)
    W_hat = packed.dequantize()
    if not torch.isfinite(W_hat).all():
        raise NumericalError(f"{job.wanted.candidate} gave values that are not finite")
    errors_O = solution.errors_O if isinstance(solution, GridSolution) else None
    if errors_O is None:
        errors_O = row_errors(W_hat - layer.W_OI, layer.H_II)
    error, energy = float(errors_O.sum(dtype=torch.float64)), layer.output_energy
    tensors = packed.stored_tensors()
    facts = {
        "stored_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "stored_tensors": len(tensors),
        "error": error,
        "relative_error": error / energy if energy > 0 else 0.0,
        "format_spec": packed.format.spec(),
    }
    return facts, tensors, errors_O
