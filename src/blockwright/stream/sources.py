"""Where a streamed model's weights come from: the original, variants in its place, or a fitted
folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blockwright.checkpoint import Checkpoint
from blockwright.formats import format_from_spec
from blockwright.types import PackedFormat, Site

DenseWeight = Callable[[Site], Tensor | None]
"""The weight [out, in] that stands at a site instead of the original's, or None to keep it."""


class WeightSource(Protocol):
    """Gives model parameters by name."""

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these parameters, in fresh memory, in the stored dtype."""


class Substituted:
    """A source with other weights at some sites."""

    def __init__(self, base: WeightSource, sites: Iterable[Site], weight_at: DenseWeight) -> None:
        self._base, self._weight_at = base, weight_at
        self._sites: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            for name in (site.parameter, *site.tied_to):
                self._sites[name].append(site)

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        tensors = self._base.load(parameters)
        for name, original in tensors.items():
            replaced = {site: self._weight_at(site) for site in self._sites.get(name, ())}
            weights = {site: weight for site, weight in replaced.items() if weight is not None}
            if weights:
                tensors[name] = with_weights(original.float(), weights)
        return tensors


def with_weights(parameter: Tensor, weights: Mapping[Site, Tensor]) -> Tensor:
    """The parameter with the weights [out, in] of some sites written into it."""
    for site, weight in weights.items():
        part_of(site, parameter).copy_(weight)
    return parameter


def weight_of(site: Site, parameter: Tensor) -> Tensor:
    """The site's weight [out, in] inside its parameter, fp32, contiguous."""
    return part_of(site, parameter).float().contiguous()


def part_of(site: Site, parameter: Tensor) -> Tensor:
    """A view [out, in] of the site's weight inside its parameter."""
    part = parameter if site.expert is None else parameter[site.expert]
    return part.T if site.transposed else part


class WithZeros:
    """A source with zeros in place of parameters that are not there (of dropped parts)."""

    def __init__(self, base: WeightSource, absent: Mapping[str, Tensor]) -> None:
        """``absent``: name -> a tensor of its shape and dtype, on ``meta``."""
        self._base, self._absent = base, absent

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        names = list(parameters)
        held = self._base.load([name for name in names if name not in self._absent])
        return {
            name: held[name] if name in held else _zeros_like(self._absent[name]) for name in names
        }


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


class FittedFolder:
    """A folder written by Blockwright: packed sites are dequantized to fp32, the rest is read as it
    is.
    """

    def __init__(
        self,
        base: WeightSource,
        checkpoint: Checkpoint,
        sites: Sequence[Site],
        shapes: Mapping[str, tuple[int, ...]],
        specs: Mapping[str, Mapping[str, object]],
    ) -> None:
        """``shapes``: of the model's parameters; ``specs``: site id -> format spec of the packed
        sites.
        """
        self._base, self._checkpoint, self._shapes, self._specs = base, checkpoint, shapes, specs
        self._packed: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            if site.id in specs:
                for name in (site.parameter, *site.tied_to):
                    self._packed[name].append(site)

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        names = list(parameters)
        tensors = self._base.load([name for name in names if name not in self._packed])
        for name in names:
            if name in self._packed:
                tensors[name] = with_weights(
                    torch.empty(self._shapes[name]),
                    {site: self._dequantized(site) for site in self._packed[name]},
                )
        return tensors

    def _dequantized(self, site: Site) -> Tensor:
        format = format_from_spec(self._specs[site.id])
        if not isinstance(format, PackedFormat):
            raise TypeError(f"{site.id}: {format.name} has no packed tensors")
        module = format.empty(site.shape, bias=False, dtype=torch.float32)
        prefix = site.stored_prefix
        stored = {name: self._checkpoint.read(prefix + name) for name in module.stored_names}
        module.load_stored(stored)
        return module.dequantize()
