"""What a healing did, whichever way it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HealSummary:
    """Figures of a healing; losses on the selection text."""

    adapters: Mapping[str, int]
    """Adapter -> hosts."""
    trainable: int
    parameters: int
    optimizer_bytes: int
    steps: int
    best_step: int
    """0: the start was best."""
    rollbacks: int = 0
    tokens_per_step: int
    loss_before: float
    loss_after: float
    seconds: float
