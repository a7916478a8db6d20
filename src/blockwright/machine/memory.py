"""Memory of a loaded model beside its sites, counted on the model itself without its weights.

    memory(N) = sites + fixed + sum of caches(N) + the largest cache(N) + activations

fixed        all parameters and buffers that are no sites
caches(N)    the model's own cache object, filled on ``meta``: sliding windows count as they are
activations  most bytes alive at once while ``ACTIVATION_TOKENS`` tokens are read (one token takes
             less), logits of the last position, and what a packed product unpacks at a time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from blockwright.anatomy import Skeleton
from blockwright.errors import ModelError
from blockwright.kvcache import (
    QuantizedLayer,
    SlidingQuantizedLayer,
    formats_for,
    quantized_cache,
)
from blockwright.machine.hollow import Hollow, hollow_model
from blockwright.types import CacheFormat, CacheGrowth, Memory

ACTIVATION_TOKENS = 512
"""Tokens of a prompt that are read at once."""
UNPACKING_BYTES = 16 * 2**20
"""What the products of packed weights with many tokens unpack at a time."""
LONG = 1 << 20
"""Tokens at which a sliding window is surely full."""


def count_memory(skeleton: Skeleton, formats: Sequence[CacheFormat] = ()) -> Memory:
    """``formats``: those on offer for KV caches.

    Raises ``ModelError`` for a model that cannot be run without its weights.
    """
    try:
        hollow = hollow_model(skeleton)
        tokens = min(ACTIVATION_TOKENS, longest_context(skeleton))
        seen = _one_token(hollow) if skeleton.task == "causal-lm" else {}
        return Memory(
            fixed_bytes=_fixed_bytes(hollow),
            activation_bytes=_most_alive(hollow, tokens) + UNPACKING_BYTES,
            activation_tokens=tokens,
            caches=_caches(hollow, seen),
            quantized=_quantized(hollow, seen, formats),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        kind = skeleton.config.model_type
        raise ModelError(f"{kind}: it cannot be run without its weights: {text}") from error


def longest_context(skeleton: Skeleton) -> int:
    """Most tokens that the model has positions for."""
    config = skeleton.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or LONG)


def _fixed_bytes(hollow: Hollow) -> int:
    """What is stored and no site's weight, and the buffers that are computed at load."""
    skeleton, model = hollow.skeleton, hollow.model
    sites = {site.parameter for site in skeleton.sites}
    tied = set(skeleton.model.all_tied_weights_keys)
    stored = {n: t for n, t in skeleton.parameters.items() if n not in sites and n not in tied}
    computed = [buffer for name, buffer in model.named_buffers() if name not in skeleton.parameters]
    return sum(tensor.nbytes for tensor in (*stored.values(), *computed))


class _AliveBytes(TorchDispatchMode):
    """Counts the memory that operations allocated and that is still referred to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _address(leaf) not in given:
                storage = leaf.untyped_storage()
                self._known[_address(leaf)] = (StorageWeakRef(storage), storage.nbytes())
        self._known = {a: known for a, known in self._known.items() if not known[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._known.values()))
        return result


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


@torch.no_grad()
def _most_alive(hollow: Hollow, tokens: int) -> int:
    options = {"use_cache": False} if hollow.skeleton.task == "causal-lm" else {}
    ids = torch.zeros(1, tokens, dtype=torch.long)
    hollow.forward(ids, **options)  # the stand-ins draw their answers
    for answer in hollow.stand_ins.values():
        answer.fresh = True
    alive = _AliveBytes()
    with alive:
        hollow.forward(ids, **options)
    return alive.most


class _RecordingCache(DynamicCache):  # type: ignore[misc]
    """Remembers what one token's keys and values look like."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.seen[layer_idx] = (key_states.to("meta"), value_states.to("meta"))
        found: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx, *args, **kwargs
        )
        return found


Seen = dict[int, tuple[Tensor, Tensor]]
"""Layer -> keys and values of one token, on ``meta``."""


@torch.no_grad()
def _one_token(hollow: Hollow) -> Seen:
    """What every layer of the cache is given."""
    config = hollow.model.config
    recorded = _RecordingCache(config)
    one_token = torch.zeros(1, 1, dtype=torch.long)
    hollow.forward(one_token, past_key_values=recorded, use_cache=True)
    layers = len(recorded.layers)
    if not recorded.seen or layers > hollow.skeleton.num_blocks:
        raise ModelError(
            f"{config.model_type}: its cache does not hold keys and values block by block"
        )
    return dict(sorted(recorded.seen.items()))


def _caches(hollow: Hollow, seen: Seen) -> dict[str, CacheGrowth]:
    """Growth of every block's cache."""
    config, path = hollow.model.config, hollow.skeleton.block_path
    return {f"{path}.{index}": _growth(config, index, *states) for index, states in seen.items()}


def _quantized(
    hollow: Hollow, seen: Seen, formats: Sequence[CacheFormat]
) -> dict[str, dict[str, CacheGrowth]]:
    """Growth of every cache in every format that can hold it."""
    config, path = hollow.model.config, hollow.skeleton.block_path
    found: dict[str, dict[str, CacheGrowth]] = {f"{path}.{index}": {} for index in seen}
    for format in formats if seen else ():
        layers = quantized_cache(config, formats_for(config, format, required=False)).layers
        for index, layer in enumerate(layers):
            if index in seen and isinstance(layer, QuantizedLayer):
                found[f"{path}.{index}"][format.name] = _in_format(layer, *seen[index])
    return found


def _in_format(layer: QuantizedLayer, keys: Tensor, values: Tensor) -> CacheGrowth:
    channels = keys.shape[-1], values.shape[-1]
    growth = layer.format.growth(keys.shape[1], channels, keys.element_size())
    slides = isinstance(layer, SlidingQuantizedLayer)
    return replace(growth, most_tokens=layer.sliding_window - 1) if slides else growth


def _growth(config: Any, index: int, keys: Tensor, values: Tensor) -> CacheGrowth:
    one = _cache_bytes(config, index, keys, values, 1)
    held = _cache_bytes(config, index, keys, values, LONG) // one
    return CacheGrowth(token_bytes=one, most_tokens=held if held < LONG else None)


def _cache_bytes(config: Any, index: int, keys: Tensor, values: Tensor, tokens: int) -> int:
    """Bytes of a layer of the model's own cache at ``tokens`` tokens, the last one appended."""
    cache = DynamicCache(config=config)
    for some in (tokens - 1, 1):
        if some:
            times = (1, 1, some, 1)
            cache.update(keys.repeat(times), values.repeat(times), index)
    layer = cache.layers[index]
    total: int = sum(t.untyped_storage().nbytes() for t in (layer.keys, layer.values))
    return total
