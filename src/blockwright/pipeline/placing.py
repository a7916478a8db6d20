"""What a plan puts where: packed tensors of every site, and the parameters around them.

A chosen group is an equivalent transform of the original (its norm divided by t, its members'
weights times t) with ordinary packed weights for the members.  Healed tensors lie over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from blockwright.library.group import SCALE
from blockwright.pipeline.fused import FusedSource, Fusing, fusings
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.healed import HealedTensors
from blockwright.pipeline.narrowing import (
    NarrowedSource,
    Narrowing,
    narrowings,
    packed_module,
)
from blockwright.pipeline.opening import Run
from blockwright.pipeline.parting import dropped_parts
from blockwright.stream import WeightSource, WithZeros
from blockwright.types import (
    Group,
    PackedLinear,
    Plan,
    Site,
    VariantRecord,
    packed_name,
    parameter_name,
)


class Placement:
    """The library's tensors of a plan."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run, self._healed = run, HealedTensors(run.library, run.skeleton, plan.healed)
        groups = {group.site.id: group for group in groups_of(run)}
        self.groups: dict[str, Group] = {}
        """Chosen groups by the key of their entry."""
        self.keys: dict[str, str] = {}
        """Key of the entry of every packed site; members of a group share one."""
        self.grouped: dict[str, Group] = {}
        """The chosen group of every member."""
        for site, choice in plan.choices.items():
            group = groups.get(site)
            if choice.key and group is not None:
                self.groups[choice.key] = group
                self.keys |= {member.id: choice.key for member in group.members}
                self.grouped |= {member.id: group for member in group.members}
            elif choice.key:
                self.keys[site] = choice.key

        tensors = run.skeleton.parameters
        self.narrowed = narrowings(run, plan)
        """Narrower parts."""
        self.fused = fusings(run, plan)
        """Blocks that do their neighbour's work."""
        whole = {narrowing.narrowed.part.site.id for narrowing in self.narrowed}
        whole |= {fusing.site.id for fusing in self.fused}
        self.keys = {site: key for site, key in self.keys.items() if site not in whole}
        dropped = dropped_parts(run, plan)
        self.absent = {name: tensors[name] for part in dropped for name in part.parameters}
        """Parameters that go with dropped parts, on ``meta``."""

    @property
    def _inner(self) -> list[Narrowing | Fusing]:
        """What holds linears of its own."""
        return [*self.narrowed, *self.fused]

    def spec(self, site: str) -> dict[str, Any]:
        """Format spec of a packed site."""
        return _record(self._run, self.keys[site], site).format_spec

    def inner_specs(self) -> dict[str, dict[str, Any]]:
        """Format specs of the packed matrices of narrower parts and fused blocks."""
        return {
            site.id: dict(item.values)
            for item in self._inner
            if item.values is not None
            for site in item.members
        }

    def tensors(self, site: Site) -> dict[str, Tensor]:
        """Stored tensors of a packed site, healed where they are."""
        for item in self._inner:
            if site.id in {member.id for member in item.members}:
                return item.packed(site)
        return {**stored_tensors(self._run, site, self.keys[site.id]), **self._healed.packed(site)}

    def module(self, site: Site) -> PackedLinear:
        """The packed module of a packed site."""
        return packed_module(self.spec(site.id), site, self.tensors(site))

    def source(self) -> WeightSource:
        """The original's parameters, folded, fused, narrowed and healed; dropped parts are zero."""
        base: WeightSource = self._run.original.parameters
        if self.groups:
            base = FoldedSource(self._run, base, self.groups)
        if self.fused:
            base = FusedSource(base, self.fused)
        if self.narrowed:
            base = NarrowedSource(base, self.narrowed)
        if self.absent:
            base = WithZeros(base, self.absent)
        return self._healed.over(base)


class FoldedSource:
    """A source with groups folded: an equivalent transform of it."""

    def __init__(self, run: Run, base: WeightSource, groups: Mapping[str, Group]) -> None:
        """``groups``: by the key of the entry that holds the fold."""
        self._run, self._base = run, base
        self._folded = {name: key for key, group in groups.items() for name in group.parameters}
        self._scaled = {
            member.parameter: (key, member)
            for key, group in groups.items()
            for member in group.members
        }

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """As the base's, members' weights in fp32."""
        tensors = self._base.load(parameters)
        entries: dict[str, dict[str, Tensor]] = {}

        def entry(key: str) -> dict[str, Tensor]:
            if key not in entries:
                entries[key] = self._run.library.tensors(key)
            return entries[key]

        for name in tensors:
            if name in self._folded:
                tensors[name] = entry(self._folded[name])[parameter_name(name)].clone()
            elif name in self._scaled:
                key, member = self._scaled[name]
                t_I = entry(key)[SCALE]
                scale = t_I[:, None] if member.transposed else t_I
                tensors[name] = tensors[name].float() * scale
        return tensors


def stored_tensors(run: Run, site: Site, key: str) -> dict[str, Tensor]:
    """Stored tensors of a site from its entry, or from that of its group."""
    tensors = run.library.tensors(key)
    if _record(run, key, site.id).site == site.id:
        return tensors
    start = packed_name(site.id, "")
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def dense_weight(run: Run, site: Site, key: str) -> Tensor:
    """A variant's weight [out, in], fp32, from the library; of a group's member in its scale."""
    spec = _record(run, key, site.id).format_spec
    return packed_module(spec, site, stored_tensors(run, site, key)).dequantize()


def _record(run: Run, key: str, site: str) -> VariantRecord:
    record = run.library.lookup(key)
    if record is None:
        raise KeyError(f"library entry {key} of {site} is gone")
    return record
