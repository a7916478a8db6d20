"""Caches for a model: quantized layers where it keeps many tokens, its own layers elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from blockwright.errors import ModelError
from blockwright.kvcache.layer import QuantizedLayer, SlidingQuantizedLayer
from blockwright.types import DROP, KEEP, CacheFormat, PartRole

Formats = Mapping[int, CacheFormat]
"""Layer -> its format; layers that are not named keep the model's own."""


def quantizable_layers(config: Any, format: CacheFormat) -> tuple[int, ...]:
    """Layers that can be kept in a format: those of all tokens, and sliding windows that are longer
    than what the format keeps exact.

    Linear attention and whatever else a model keeps stay as they are.
    """
    layers, gone = DynamicCache(config=config).layers, layers_without_attention(config)
    return tuple(
        index
        for index, layer in enumerate(layers)
        if index not in gone and quantized_layer(layer, format) is not None
    )


def layers_without_attention(config: Any) -> frozenset[int]:
    """Layers of a fitted folder whose attention was dropped: they only count tokens."""
    parts = _recorded(config).get("parts", {})
    return frozenset(
        int(spec["block"])
        for spec in parts.values()
        if spec["format"] == str(DROP) and spec["role"] == PartRole.ATTENTION
    )


def quantized_layer(layer: Any, format: CacheFormat) -> QuantizedLayer | None:
    """What stands for a layer of the model's own cache in a format; None where it cannot."""
    if type(layer) is DynamicLayer:
        return QuantizedLayer(format)
    slides = type(layer) is DynamicSlidingWindowLayer
    if slides and layer.sliding_window > format.window + format.page:
        return SlidingQuantizedLayer(format, layer.sliding_window)
    return None


def formats_for(
    config: Any, format: CacheFormat, *, required: bool = True
) -> dict[int, CacheFormat]:
    """One format wherever it can stand; ``ModelError`` where that is nowhere and ``required``."""
    layers = quantizable_layers(config, format)
    if required and not layers:
        exact = format.window + format.page
        raise ModelError(
            f"{config.model_type}: no block keeps keys and values of more tokens than the {exact}"
            f" that {format.name} keeps exact; leave --kv out, or give a smaller window"
        )
    return dict.fromkeys(layers, format)


def chosen_formats(config: Any, kv: str | None = None) -> dict[int, CacheFormat]:
    """The formats that ``kv`` names, or those that a fitted folder's config records.

    ``kv``: a format for all layers that can take one, ``keep`` for none, None for the folder's.
    """
    if kv == str(KEEP):
        return {}
    if kv is not None:
        return formats_for(config, CacheFormat.parse(kv))
    recorded = _recorded(config).get("cache", {})
    return {int(layer): CacheFormat.from_spec(spec) for layer, spec in recorded.items()}


def _recorded(config: Any) -> Mapping[str, Any]:
    """What a fitted folder's config says; empty for other models."""
    quantization = getattr(config, "quantization_config", None) or {}
    given = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return given if given.get("quant_method") == "blockwright" else {}


def cache_of(config: Any, kv: str | None = None) -> Cache | None:
    """An empty cache of ``chosen_formats``; None where the ordinary one is meant."""
    formats = chosen_formats(config, kv)
    return quantized_cache(config, formats) if formats else None


def own_layers(config: Any, formats: Formats) -> str:
    """Which layers keep the model's own cache, in words; empty when none does."""
    if not formats:
        return ""
    layers = DynamicCache(config=config).layers
    kept = [index for index in range(len(layers)) if index not in formats]
    kinds = sorted({type(layers[index]).__name__ for index in kept})
    if not kept:
        return ""
    blocks = ", ".join(map(str, kept))
    return f"KV cache of blocks {blocks} stays in the model's own dtype ({', '.join(kinds)})"


def quantized_cache(config: Any, formats: Formats) -> Cache:
    """An empty cache for one ``generate`` or a series of forwards: ``past_key_values=``."""
    layers = DynamicCache(config=config).layers
    for index, format in formats.items():
        found = quantized_layer(layers[index], format) if index < len(layers) else None
        if found is None:
            possible = ", ".join(map(str, quantizable_layers(config, format))) or "none"
            raise ModelError(
                f"{config.model_type}: block {index} has no cache that {format.name} can hold;"
                f" blocks that have one: {possible}"
            )
        layers[index] = found
    return Cache(layers=layers)


def held_bytes(cache: Cache) -> int:
    """Bytes of memory that a cache really holds, every allocation once."""
    tensors: list[Tensor] = []
    for layer in cache.layers:
        if isinstance(layer, QuantizedLayer):
            tensors += layer.held_tensors()
        elif getattr(layer, "keys", None) is not None:
            tensors += [layer.keys, layer.values]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
