"""Workloads: what a model is doing when its latency is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DEFAULT_CONTEXT = 512
"""Tokens, where the user names none."""


class Phase(StrEnum):
    """Reading a prompt, or writing one token after another."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One forward: ``context`` new tokens (prefill), or one token after ``context`` (decode)."""

    phase: Phase = Phase.DECODE
    batch: int = 1
    context: int = DEFAULT_CONTEXT

    def __str__(self) -> str:
        return f"{self.phase.value} of batch {self.batch} at {self.context} tokens"

    def to_json(self) -> dict[str, Any]:
        return {"phase": self.phase.value, "batch": self.batch, "context": self.context}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        """Inverse of ``to_json``; raises ``KeyError`` or ``ValueError`` for anything else."""
        return cls(
            phase=Phase(data["phase"]), batch=int(data["batch"]), context=int(data["context"])
        )
