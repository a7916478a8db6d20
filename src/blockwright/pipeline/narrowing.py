"""Narrower parts: their variants, and what a plan makes of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blockwright.anatomy import (
    Slice,
    head_shapes,
    narrow_shapes,
    shapes_within,
    slices_within,
)
from blockwright.formats import format_from_spec
from blockwright.library import variant_key
from blockwright.library.build import WantedVariant, needs_of, variant_inputs
from blockwright.library.head_dims import build_head_dims, dims_of
from blockwright.library.part import CHANNELS, WEIGHT, PartTensors, build_narrow
from blockwright.machine.works import works_of
from blockwright.pipeline.curvature import moments_key, site_moments
from blockwright.pipeline.distilling import distilled
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.parting import parts_of
from blockwright.registry import resolve
from blockwright.stream import WeightSource, weight_of
from blockwright.types import (
    KEEP,
    Candidate,
    DistillingMethod,
    HeadDimFormat,
    NarrowedPart,
    Option,
    PackedFormat,
    PackedLinear,
    Part,
    Plan,
    Site,
    Statistic,
    Statistics,
    WidthFormat,
    packed_name,
)


def parts_to_narrow(run: Run) -> tuple[Part, ...]:
    """Parts for which narrower variants are wanted."""
    return tuple(part for part in parts_of(run) if widths_for(run, part))


def widths_for(run: Run, part: Part) -> list[Candidate]:
    """Candidates that make this kind of part narrower."""
    found = []
    for candidate in run.candidates_for(part.site):
        format = resolve(candidate)[0]
        if isinstance(format, WidthFormat) and format.role is part.role:
            found.append(candidate)
    return found


def wanted_part_variants(run: Run, part: Part) -> list[WantedVariant]:
    """All narrower variants of a part on the original's inputs, with their keys."""
    found = []
    for candidate in widths_for(run, part):
        seen = f"{run.statistics_digest}/{part.site.id}"
        ranked = Statistic.OUTPUT_GRADIENT in needs_of([candidate])
        inputs = variant_inputs(
            source=digest_of([run.original.weight_digest(member) for member in part.members]),
            candidate=candidate,
            statistics=f"{seen}/moments-{moments_key(run)}" if ranked else seen,
            surroundings=run.surroundings,
        )
        found.append(WantedVariant(candidate, variant_key(inputs), inputs))
    return found


def build_part(
    run: Run,
    part: Part,
    statistics: Mapping[str, Statistics],
    items: Sequence[WantedVariant],
) -> None:
    """Build narrower variants of a part and store them."""
    loaded = run.original.parameters.load([member.parameter for member in part.members])
    weights = {member.id: weight_of(member, loaded[member.parameter]) for member in part.members}
    seen = {site.id: statistics[site.id] for site in part.members if site.id in statistics}
    if any(Statistic.OUTPUT_GRADIENT in needs_of([item.candidate]) for item in items):
        felt = {site.id: site_moments(run, site) for site in part.members if site.id in seen}
        seen = {name: replace(seen[name], output_gradient=G_O) for name, G_O in felt.items()}
    tensors = PartTensors(weights, loaded[writer_of(part).parameter].dtype, seen)
    for item in items:
        with run.library.building(item.key):
            format = resolve(item.candidate)[0]
            build = build_head_dims if isinstance(format, HeadDimFormat) else build_narrow
            built = build(part, tensors, item)
            method = distilling(item.candidate)
            if built.record.available and method is not None:
                built = distilled(run, part, built, method)
            record = built.record
            plain = record.available and not record.stored_tensors
            if plain and isinstance(format, WidthFormat):
                record = replace(record, stored_bytes=narrow_bytes(run, part, format))
            run.library.store(record, built.tensors)


def distilling(candidate: Candidate) -> DistillingMethod | None:
    """The method that trains a candidate's plain matrices; None where none does."""
    format, (method, *_) = resolve(candidate)
    trains = isinstance(method, DistillingMethod) and method.steps > 0
    plain = isinstance(format, WidthFormat) and format.values is None
    return method if trains and plain and isinstance(method, DistillingMethod) else None


def shapes_for(part: Part, format: WidthFormat) -> dict[str, tuple[int, int]]:
    """Site -> (out, in) of a part in a format; none where it has no such channels or heads."""
    if isinstance(format, HeadDimFormat):
        if part.heads is None:
            return {}
        kept = dict.fromkeys((site.id for site in part.members), format.kept(part.heads.size))
        return head_shapes(part, part.heads, kept)
    if part.channels is None:
        return {}
    return narrow_shapes(part.members, part.channels, format.kept(part.channels.width))


def narrow_bytes(run: Run, part: Part, format: WidthFormat, *, resident: bool = False) -> int:
    """Bytes of a part's weights in a format, plain ones in their stored dtype: the fewest there can
    be, or what they take in memory once loaded.
    """
    found, values = 0, format.values
    for site, shape in _resized(part, format):
        if values is None:
            found += shape[0] * shape[1] * run.skeleton.parameters[site.parameter].itemsize
        elif resident:
            found += values.resident_bytes(shape, run.request.device)
        else:
            found += values.least_bytes(shape)
    return found


def narrower_works(run: Run, option: Option) -> tuple[str, ...]:
    """Names of the works of a part at the width and in the format of an option."""
    format = resolve(Candidate.parse(option.candidate))[0]
    if not isinstance(format, WidthFormat):
        raise TypeError(f"{option.candidate} is no narrower part")
    name = format.values.name if format.values else str(KEEP)
    return tuple(
        work
        for part in parts_to_narrow(run)
        if part.site.id == option.site
        for site, shape in _resized(part, format)
        for work in works_of(replace(site, shape=shape), name)
    )


def resized_sites(run: Run) -> list[tuple[Site, tuple[int, int]]]:
    """Linears of parts with the shapes that they may have."""
    found = []
    for part in parts_to_narrow(run):
        for candidate in widths_for(run, part):
            format = resolve(candidate)[0]
            if isinstance(format, WidthFormat):
                found += _resized(part, format)
    return found


def _resized(part: Part, format: WidthFormat) -> list[tuple[Site, tuple[int, int]]]:
    shapes = shapes_for(part, format)
    return [(site, shapes[site.id]) for site in part.members if site.id in shapes]


def freed_biases(run: Run, part: Part, format: WidthFormat) -> int:
    """Bytes of the biases that go with the other channels."""
    return sum(
        run.skeleton.parameters[site.bias].itemsize * (site.shape[0] - shape[0])
        for site, shape in _resized(part, format)
        if site.bias
    )


@dataclass(frozen=True)
class Narrowing:
    """One narrower part of a plan."""

    narrowed: NarrowedPart
    tensors: Mapping[str, Tensor]
    """Of its library entry."""

    @property
    def values(self) -> Mapping[str, Any] | None:
        """Spec of the format of its matrices; None where they are plain."""
        return self.narrowed.spec.get("values")

    def member(self, site: Site) -> Site:
        """A member at its smaller shape."""
        return replace(site, shape=shapes_within(self.narrowed)[site.id])

    @property
    def members(self) -> tuple[Site, ...]:
        """The linears of the part."""
        return self.narrowed.part.members

    def packed(self, site: Site) -> dict[str, Tensor]:
        """Stored tensors of a member."""
        start = packed_name(site.id, "")
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    def slices(self) -> dict[str, Slice]:
        """Parameter -> what stays of it."""
        return slices_within(self.narrowed)

    def tensor(self, name: str, slice: Slice, original: Tensor) -> Tensor:
        """A parameter of the whole shape, zero where nothing stays."""
        part, kept = self.narrowed.part, None
        site = next((site for site in part.members if site.parameter == name), None)
        if site is not None and self.values is not None:
            member = self.member(site)
            kept = packed_module(self.values, member, self.packed(site)).dequantize()
        elif site is not None:
            own = WEIGHT if site.id == writer_of(part).id else ""
            kept = self.tensors.get(packed_name(site.id, WEIGHT), self.tensors.get(own))
        if site is None or kept is None:
            return slice.zeroed(original)
        stored = (kept.T if site.transposed else kept).contiguous()
        return slice.spread(stored, original.shape[slice.axis])


def narrowings(run: Run, plan: Plan) -> list[Narrowing]:
    """The narrower parts of a plan, from the library."""
    chosen = {site: choice.key for site, choice in plan.choices.items() if choice.key}
    known = {site.id for site in run.skeleton.sites}
    if not chosen.keys() - known:
        return []
    found = []
    for part in parts_of(run):
        key = chosen.get(part.site.id)
        record = run.library.lookup(key) if key else None
        if key and record is not None:
            tensors = run.library.tensors(key)
            narrowed = NarrowedPart(
                part=part,
                spec=record.format_spec,
                kept=tuple(tensors[CHANNELS].tolist()) if CHANNELS in tensors else (),
                dims=dims_of(part, tensors),
            )
            found.append(Narrowing(narrowed, tensors))
    return found


class NarrowedSource:
    """A source with narrower parts, at their whole shapes: what does not stay is zero."""

    def __init__(self, base: WeightSource, narrowed: Iterable[Narrowing]) -> None:
        self._base = base
        self._slices = {
            name: (narrowing, slice)
            for narrowing in narrowed
            for name, slice in narrowing.slices().items()
        }

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        tensors = self._base.load(parameters)
        for name, original in tensors.items():
            if name in self._slices:
                narrowing, slice = self._slices[name]
                tensors[name] = narrowing.tensor(name, slice, original)
        return tensors


def packed_module(
    spec: Mapping[str, Any], site: Site, tensors: Mapping[str, Tensor]
) -> PackedLinear:
    """The packed module of stored tensors."""
    format = format_from_spec(spec)
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{site.id}: {format.name} has no packed tensors")
    module = format.empty(site.shape, bias=False, dtype=torch.float32)
    module.load_stored(tensors)
    return module


def writer_of(part: Part) -> Site:
    """The linear that reads all channels."""
    writer = part.channels.writer if part.channels else part.members[-1].id
    return next(site for site in part.members if site.id == writer)
