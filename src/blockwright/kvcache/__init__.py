"""KV caches with quantized keys and values: real ones for transformers, and what they cost."""

from blockwright.kvcache.build import (
    Formats,
    cache_of,
    chosen_formats,
    formats_for,
    held_bytes,
    own_layers,
    quantizable_layers,
    quantized_cache,
)
from blockwright.kvcache.decoding import DecodedAttention, decoded
from blockwright.kvcache.layer import QuantizedLayer, SlidingQuantizedLayer

__all__ = [
    "DecodedAttention",
    "Formats",
    "QuantizedLayer",
    "SlidingQuantizedLayer",
    "cache_of",
    "chosen_formats",
    "decoded",
    "formats_for",
    "held_bytes",
    "own_layers",
    "quantizable_layers",
    "quantized_cache",
]
