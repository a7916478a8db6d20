"""Narrower FFNs: their variants, and what a plan makes of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blockwright.anatomy import Slice, narrow_shapes, slices_of
from blockwright.library import variant_key
from blockwright.library.build import WantedVariant, variant_inputs
from blockwright.library.part import CHANNELS, WEIGHT, build_narrow
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.parting import parts_of
from blockwright.stream import WeightSource, weight_of
from blockwright.types import NarrowedPart, Part, PartRole, Plan, Site, Statistics


def parts_to_narrow(run: Run) -> tuple[Part, ...]:
    """FFNs for which narrower variants are wanted."""
    return tuple(
        part
        for part in parts_of(run)
        if part.role is PartRole.FFN and run.candidates_for(part.site)
    )


def wanted_part_variants(run: Run, part: Part) -> list[WantedVariant]:
    """All narrower variants of an FFN on the original's inputs, with their keys."""
    found = []
    for candidate in run.candidates_for(part.site):
        inputs = variant_inputs(
            source=digest_of([run.original.weight_digest(member) for member in part.members]),
            candidate=candidate,
            statistics=f"{run.statistics_digest}/{part.site.id}",
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
    """Build narrower variants of an FFN and store them."""
    writer = _writer(part)
    parameter = run.original.parameters.load([writer.parameter])[writer.parameter]
    W_OI, seen = weight_of(writer, parameter), statistics.get(writer.id)
    for item in items:
        with run.library.building(item.key):
            built = build_narrow(part, W_OI, parameter.dtype, seen, item)
            record = built.record
            if record.available:
                kept = len(built.tensors[CHANNELS])
                record = replace(record, stored_bytes=narrow_bytes(run, part, kept))
            run.library.store(record, built.tensors)


def narrow_bytes(run: Run, part: Part, kept: int) -> int:
    """Bytes of an FFN's weights with so many channels, in their stored dtype."""
    if part.channels is None:
        raise ValueError(f"{part.site.id} has no channels")
    shapes = narrow_shapes(part.members, part.channels, kept)
    return sum(
        shapes[site.id][0] * shapes[site.id][1] * run.skeleton.parameters[site.parameter].itemsize
        for site in part.members
    )


def freed_biases(run: Run, part: Part, kept: int) -> int:
    """Bytes of the biases that go with the other channels."""
    if part.channels is None:
        raise ValueError(f"{part.site.id} has no channels")
    biases = [run.skeleton.parameters[site.bias] for site in _readers(part) if site.bias]
    return sum(bias.nbytes - bias.nbytes // part.channels.width * kept for bias in biases)


@dataclass(frozen=True)
class Narrowing:
    """One narrower FFN of a plan."""

    narrowed: NarrowedPart
    W_OK: Tensor
    """Of the writer, in its stored dtype."""

    def slices(self) -> dict[str, Slice]:
        """Parameter -> what stays of it."""
        part = self.narrowed.part
        if part.channels is None:
            raise ValueError(f"{part.site.id} has no channels")
        return slices_of(part.members, part.channels, self.narrowed.kept)

    def tensor(self, name: str, slice: Slice, original: Tensor) -> Tensor:
        """A parameter of the whole shape, zero where nothing stays."""
        writer = _writer(self.narrowed.part)
        if name != writer.parameter:
            return slice.zeroed(original)
        kept = self.W_OK.T if writer.transposed else self.W_OK
        return slice.spread(kept.contiguous(), original.shape[slice.axis])


def narrowings(run: Run, plan: Plan) -> list[Narrowing]:
    """The narrower FFNs of a plan, from the library."""
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
            kept = tuple(tensors[CHANNELS].tolist())
            narrowed = NarrowedPart(part=part, spec=record.format_spec, kept=kept)
            found.append(Narrowing(narrowed, tensors[WEIGHT]))
    return found


class NarrowedSource:
    """A source with narrower FFNs, at their whole shapes: what does not stay is zero."""

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


def _writer(part: Part) -> Site:
    writer = part.channels.writer if part.channels else part.members[-1].id
    return next(site for site in part.members if site.id == writer)


def _readers(part: Part) -> list[Site]:
    return [site for site in part.members if site.id != _writer(part).id]
