"""Memory of a loaded model, beside what stands at its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CacheGrowth:
    """How one block's KV cache grows with the context."""

    token_bytes: int
    most_tokens: int | None = None
    """A sliding window holds no more than this; None: it grows on."""

    def at(self, context: int) -> int:
        """Bytes at ``context`` tokens, batch 1."""
        held = context if self.most_tokens is None else min(context, self.most_tokens)
        return self.token_bytes * held


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the loaded model holds beside its sites:

    fixed + sum of caches + the largest cache once more + activations

    A cache is copied when tokens are appended to it, one block's after another.
    """

    fixed_bytes: int
    """Parameters and buffers that are no sites: norms, biases, routers, rotary frequencies."""
    activation_bytes: int
    """Most that is alive at once while ``activation_tokens`` tokens are read."""
    activation_tokens: int
    caches: Mapping[str, CacheGrowth]
    """Block (site id) -> its cache."""

    def beside_sites(self, context: int) -> int:
        """Bytes at ``context`` tokens, batch 1."""
        caches = [growth.at(context) for growth in self.caches.values()]
        return self.fixed_bytes + sum(caches) + max(caches, default=0) + self.activation_bytes

    def freed_by_drop(self, block: str, context: int) -> int:
        """Bytes of the cache that a dropped block takes away."""
        return self.caches[block].at(context) if block in self.caches else 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        """Inverse of ``dataclasses.asdict``."""
        caches = {block: CacheGrowth(**growth) for block, growth in data["caches"].items()}
        return cls(**{**data, "caches": caches})
