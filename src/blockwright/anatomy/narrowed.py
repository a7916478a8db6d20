"""A part with fewer channels: what stays of its parameters, and smaller modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from blockwright.types import Channels, HeadDims, NarrowedPart, Part, Site


@dataclass(frozen=True)
class Slice:
    """What stays of a parameter."""

    axis: int
    kept: Sequence[int]
    """Indices along it, rising within each piece."""

    def of(self, tensor: Tensor) -> Tensor:
        """The smaller tensor."""
        return tensor.index_select(self.axis, torch.tensor(self.kept)).contiguous()

    def zeroed(self, tensor: Tensor) -> Tensor:
        """A tensor of the whole shape that is zero where nothing stays."""
        return self.spread(self.of(tensor), tensor.shape[self.axis])

    def spread(self, kept: Tensor, whole: int) -> Tensor:
        """The smaller tensor among zeros, ``whole`` long along the axis."""
        shape = list(kept.shape)
        shape[self.axis] = whole
        return kept.new_zeros(shape).index_copy_(self.axis, torch.tensor(self.kept), kept)

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The smaller shape."""
        return tuple(
            len(self.kept) if axis == self.axis else size for axis, size in enumerate(whole)
        )


def slices_of(members: Iterable[Site], channels: Channels, kept: Sequence[int]) -> dict[str, Slice]:
    """Parameter -> what stays of it when only some channels do."""
    found = {}
    for site in members:
        if site.id == channels.writer:
            found[site.parameter] = Slice(0 if site.transposed else 1, channels.inputs(kept))
            continue
        rows = channels.rows(site.id, kept)
        found[site.parameter] = Slice(1 if site.transposed else 0, rows)
        if site.bias is not None:
            found[site.bias] = Slice(0, rows)
    return found


def narrow_shapes(
    members: Iterable[Site], channels: Channels, kept: int
) -> dict[str, tuple[int, int]]:
    """Site -> (out, in) when so many channels stay."""
    found = {}
    for site in members:
        out_features, in_features = site.shape
        if site.id == channels.writer:
            found[site.id] = (out_features, kept * channels.columns)
        else:
            found[site.id] = (kept * channels.readers[site.id][0], in_features)
    return found


def slices_within(item: NarrowedPart) -> dict[str, Slice]:
    """Parameter -> what stays of it in a narrower part."""
    if not item.dims:
        channels = item.part.channels
        return {} if channels is None else slices_of(item.part.members, channels, item.kept)
    found = {}
    for site in item.part.members:
        writes = item.part.heads is not None and site.id == item.part.heads.output
        inside = _head_indices(item, site, site.shape[1] if writes else site.shape[0])
        found[site.parameter] = Slice(1 if writes != site.transposed else 0, inside)
        if site.bias is not None and not writes:
            found[site.bias] = Slice(0, inside)
    return found


def shapes_within(item: NarrowedPart) -> dict[str, tuple[int, int]]:
    """Site -> (out, in) in a narrower part."""
    if not item.dims:
        channels = item.part.channels
        members = item.part.members
        return {} if channels is None else narrow_shapes(members, channels, len(item.kept))
    kept = {name: len(dims) for name, dims in item.dims.items()}
    return {} if item.part.heads is None else head_shapes(item.part, item.part.heads, kept)


def head_shapes(part: Part, heads: HeadDims, kept: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Site -> (out, in) when every head of a linear keeps so many dimensions."""
    found = {}
    for site in part.members:
        out_features, in_features = site.shape
        if site.id == heads.output:
            found[site.id] = (out_features, in_features // heads.size * kept[site.id])
        else:
            found[site.id] = (out_features // heads.size * kept[site.id], in_features)
    return found


def _head_indices(item: NarrowedPart, site: Site, whole: int) -> list[int]:
    size = item.part.heads.size if item.part.heads else whole
    return [start + dim for start in range(0, whole, size) for dim in item.dims[site.id]]


def install_narrow(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Replace linears by empty ones of these shapes, (out, in); ``AttributeError`` where one is not
    there.
    """
    for path, (out_features, in_features) in shapes.items():
        module = model.get_submodule(path)
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        made: nn.Module
        with torch.device(weight.device):
            if isinstance(module, Conv1D):
                made = Conv1D(out_features, in_features)
            else:
                made = nn.Linear(in_features, out_features, bias=bias is not None)
        model.set_submodule(path, made.to(weight.dtype).requires_grad_(False))
