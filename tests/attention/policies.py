"""Every registered policy, small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from blockwright.attention.budget import option_names
from blockwright.attention.policy import Policy
from blockwright.registry import policy_class, policy_names

SMALL: dict[str, Any] = {
    "block": 16,
    "query_block": 16,
    "key_block": 16,
    "stride": 4,
    "keep": 3,
    "window": 40,
    "sink": 4,
    "recent": 8,
    "segment": 32,
    "coarse": 8,
    "part": 16,
}
OWN: dict[str, dict[str, Any]] = {
    "blade": {"samples": 4, "least": 0.0, "most": 1.0, "threshold": 0.6, "window": 0},
    "chunkllm": {"keep": 2, "length": 20, "local": 24, "block": 8},
    "blockrank": {"length": 32},
    "nsa": {"run": 8, "hop": 4, "shared": False},
    "pbs": {"keep": 0, "threshold": 0.5},
    "s2o": {"eps": 0.0, "cap": 0.2},
    "vmoba": {"keep": 0, "boxes": "1x4x4"},
    "xattention": {"keep": 0, "threshold": 0.5},
}
"""Where one value does not suit all."""


def small(name: str) -> Policy:
    """A policy with tiles of 16 tokens and a budget of a few of them."""
    policy = policy_class(name)()
    changes = {option: SMALL[option] for option in option_names(policy) if option in SMALL}
    return replace(policy, **changes | OWN.get(name, {}))  # type: ignore[type-var]


NAMES = policy_names()
CAUSAL = [name for name in NAMES if policy_class(name).causal]
BIDIRECTIONAL = [name for name in NAMES if policy_class(name).bidirectional]
