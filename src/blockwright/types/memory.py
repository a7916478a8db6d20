"""Memory of a loaded model, beside what stands at its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

COUNTED_BYTES = 8
"""What a cache holds of a token where attention was dropped, at most: two numbers in fp32."""


@dataclass(frozen=True, kw_only=True)
class CacheGrowth:
    """How one block's KV cache grows with the context."""

    token_bytes: int
    """Of a token as the model makes it."""
    most_tokens: int | None = None
    """A sliding window holds no more than this (in pages: and less than one page more); None: it
    grows on.
    """
    window_tokens: int = 0
    """In a quantized cache: newest tokens that stay exact, at least."""
    page_tokens: int = 0
    """Tokens that are quantized together; 0: nothing is."""
    page_bytes: int = 0
    """Of a quantized page."""
    order_bytes: int = 0
    """Held from the first page on."""

    def at(self, context: int) -> int:
        """Bytes at ``context`` tokens, batch 1."""
        held = context if self.most_tokens is None else min(context, self.most_tokens)
        if not self.page_tokens:
            return self.token_bytes * held
        made = max(0, context - self.window_tokens) // self.page_tokens
        exact = context - made * self.page_tokens
        gone = (context - held) // self.page_tokens
        quantized = (made - gone) * self.page_bytes + (self.order_bytes if made else 0)
        return exact * self.token_bytes + quantized


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the loaded model holds beside its sites:

    fixed + sum of caches + the largest cache once more + activations

    A cache is copied when tokens are appended to it, one block's after another; a quantized one is
    read into as much.
    """

    fixed_bytes: int
    """Parameters and buffers that are no sites: norms, biases, routers, rotary frequencies."""
    activation_bytes: int
    """Most that is alive at once while ``activation_tokens`` tokens are read."""
    activation_tokens: int
    caches: Mapping[str, CacheGrowth]
    """Block (site id) -> its cache."""
    quantized: Mapping[str, Mapping[str, CacheGrowth]] = field(default_factory=dict)
    """Block -> format on offer for its cache -> that cache."""

    def beside_sites(self, context: int) -> int:
        """Bytes at ``context`` tokens, batch 1."""
        caches = [growth.at(context) for growth in self.caches.values()]
        return self.fixed_bytes + sum(caches) + max(caches, default=0) + self.activation_bytes

    def cache_bytes(self, context: int, formats: Mapping[str, str] | None = None) -> int:
        """Bytes of all caches at ``context`` tokens, batch 1; ``formats``: block -> format of those
        that are quantized.
        """
        named = formats or {}
        return sum(
            (self.quantized[block][named[block]] if block in named else growth).at(context)
            for block, growth in self.caches.items()
        )

    def changed_by_cache(self, block: str, format: str, context: int) -> int:
        """Bytes that a format adds to a block's cache; negative where it saves."""
        return self.quantized[block][format].at(context) - self.caches[block].at(context)

    def freed_by_drop(self, block: str, context: int) -> int:
        """Bytes of the cache that a dropped block takes away."""
        return self.caches[block].at(context) if block in self.caches else 0

    def freed_by_part(self, block: str, context: int) -> int:
        """Bytes of a block's cache that its attention takes away: a number per token stays, as a
        key and as a value.
        """
        if block not in self.caches:
            return 0
        counted = replace(self.caches[block], token_bytes=COUNTED_BYTES)
        return self.caches[block].at(context) - counted.at(context)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        """Inverse of ``dataclasses.asdict``."""
        caches = {block: CacheGrowth(**growth) for block, growth in data["caches"].items()}
        quantized = {
            block: {name: CacheGrowth(**growth) for name, growth in found.items()}
            for block, found in data.get("quantized", {}).items()
        }
        return cls(**{**data, "caches": caches, "quantized": quantized})
