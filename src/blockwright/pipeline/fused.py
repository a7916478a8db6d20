"""Fused blocks of a plan, laid over the original's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blockwright.pipeline.narrowing import packed_module
from blockwright.pipeline.opening import Run
from blockwright.stream import WeightSource
from blockwright.types import Plan, Site, SiteKind, packed_name, parameter_name


@dataclass(frozen=True)
class Fusing:
    """One fused block of a plan."""

    site: Site
    spec: Mapping[str, Any]
    """Of its format."""
    members: tuple[Site, ...]
    """Its linears."""
    tensors: Mapping[str, Tensor]
    """Of its library entry."""

    @property
    def values(self) -> Mapping[str, Any] | None:
        """Spec of the format of its matrices; None where they are plain."""
        return self.spec.get("values")

    def packed(self, site: Site) -> dict[str, Tensor]:
        """Stored tensors of a member."""
        start = packed_name(site.id, "")
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    def parameter(self, name: str) -> Tensor | None:
        """A parameter as it is stored, or dequantized; None where it is the original's."""
        plain = self.tensors.get(parameter_name(name))
        if plain is not None or self.values is None:
            return plain
        for site in self.members:
            if site.parameter == name:
                W_OI = packed_module(self.values, site, self.packed(site)).dequantize()
                return W_OI.T.contiguous() if site.transposed else W_OI
        return None


def fusings(run: Run, plan: Plan) -> list[Fusing]:
    """The fused blocks of a plan, from the library."""
    found = []
    for site in run.skeleton.sites:
        choice = plan.choices.get(site.id)
        if site.kind is not SiteKind.BLOCK or choice is None or not choice.key:
            continue
        record = run.library.lookup(choice.key)
        if record is None:
            raise KeyError(f"library entry {choice.key} of {site.id} is gone")
        members = [s for s in run.skeleton.block_sites(site.block or 0) if s.parameter]
        tensors = run.library.tensors(choice.key)
        found.append(Fusing(site, record.format_spec, tuple(members), tensors))
    return found


class FusedSource:
    """A source with fused blocks in place of some."""

    def __init__(self, base: WeightSource, fused: Iterable[Fusing]) -> None:
        self._base, self._fused = base, list(fused)

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        tensors = self._base.load(parameters)
        for fusing in self._fused:
            inside = [name for name in tensors if name.startswith(f"{fusing.site.id}.")]
            found = {name: fusing.parameter(name) for name in inside}
            tensors |= {name: t.clone() for name, t in found.items() if t is not None}
        return tensors
