"""Linears of heads with fewer dimensions, in a forward that knows how many there were.

What a linear gives is placed among zeros, and what one reads is taken from there: queries and keys
have zeros where dimensions went, so their products are those of what stays, and values have them
where the output matrix has no columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Places:
    """Where kept dimensions stand among all."""

    def __init__(self, size: int, dims: Sequence[int]) -> None:
        self.size, self.dims = size, list(dims)
        self._indices: dict[torch.device, Tensor] = {}

    def index(self, device: torch.device) -> Tensor:
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.dims, device=device)
        return self._indices[device]


class PlacedOutputs(_Places):
    """A forward hook: [..., heads * kept] -> [..., heads * size] with zeros between."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        parts = output.unflatten(-1, (-1, len(self.dims)))
        whole = parts.new_zeros(*parts.shape[:-1], self.size)
        placed: Tensor = whole.index_copy(-1, self.index(output.device), parts).flatten(-2)
        return placed


class TakenInputs(_Places):
    """A forward pre-hook: [..., heads * size] -> [..., heads * kept]."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = inputs[0].unflatten(-1, (-1, self.size))
        return parts.index_select(-1, self.index(inputs[0].device)).flatten(-2), *inputs[1:]


def install_placed(model: nn.Module, places: Mapping[str, Mapping[str, Any]]) -> None:
    """Put outputs among zeros, and take inputs from there; ``places``: path -> ``size`` of a head,
    its ``dims`` that stay, and whether they are ``inputs``.

    ``AttributeError`` where the model has no such module.
    """
    for path, place in places.items():
        module, size, dims = model.get_submodule(path), int(place["size"]), place["dims"]
        if place["inputs"]:
            module.register_forward_pre_hook(TakenInputs(size, dims))
        else:
            module.register_forward_hook(PlacedOutputs(size, dims))
