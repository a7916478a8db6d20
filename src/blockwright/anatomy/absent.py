"""What stands in a model where a module was dropped.

    silent       zeros in the shape of the hidden states: nothing is written to the residual stream
    not silent   the hidden states themselves, for the module behind it, which is absent as well

Where attention was, a KV cache still gets one number per token and layer: transformers reads the
length of what was seen, and the offsets of masks, from any layer of a kind.  So indices of layers,
``layer_types`` and caches stay those of the original, and no architecture has to be known.

A tensor without elements keeps the name of the module's first weight: plain transformers stops at
its shape instead of filling what is missing with random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from blockwright.types import AbsentModule

HIDDEN = "hidden_states"
"""transformers' name of what a block and its modules are given."""


class Absent(nn.Module):
    """Answers for a dropped module."""

    def __init__(self, description: AbsentModule, layer: int | None, sentinel: str) -> None:
        """``layer``: of the KV cache, for attention; ``sentinel``: name of the tensor without
        elements, relative to this module.
        """
        super().__init__()
        self.description, self.layer = description, layer
        path, _, leaf = sentinel.rpartition(".")
        holder: nn.Module = self
        for name in path.split(".") if path else ():
            holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        holder.register_buffer(leaf, torch.empty(0, dtype=torch.uint8))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, or the hidden states; a tuple is filled up with None."""
        hidden = args[0] if args else kwargs[HIDDEN]
        self._count_tokens(hidden, (*args, *kwargs.values()))
        answer = torch.zeros_like(hidden) if self.description.silent else hidden
        outputs = self.description.outputs
        return (answer, *[None] * (outputs - 1)) if outputs else answer

    def _count_tokens(self, hidden_BTH: Tensor, given: Iterable[Any]) -> None:
        """Tell the cache that so many tokens were seen."""
        cache = next((value for value in given if isinstance(value, Cache)), None)
        if cache is not None and self.layer is not None:
            number = hidden_BTH.new_zeros(len(hidden_BTH), 1, hidden_BTH.shape[1], 1)
            cache.update(number, number, self.layer)


def install_absent(model: nn.Module, modules: Iterable[AbsentModule]) -> None:
    """Put stand-ins in place; raises ``AttributeError`` where the model has no such module."""
    for described in modules:
        module = model.get_submodule(described.path)
        absent = Absent(described, cache_layer(module), sentinel_of(module))
        model.set_submodule(described.path, absent)


def sentinel_of(module: nn.Module) -> str:
    """The parameter whose name stays: the first that has rows and columns."""
    return next(name for name, parameter in module.named_parameters() if parameter.ndim > 1)


def cache_layer(module: nn.Module) -> int | None:
    """The layer of the KV cache that a module, or one inside it, writes to."""
    layers = [getattr(inside, "layer_idx", None) for inside in module.modules()]
    return next((layer for layer in layers if isinstance(layer, int)), None)
