"""How long and how fast a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blockwright.errors import TrainingError
from blockwright.training.multigrid import shape_at

BETAS = (0.9, 0.95)
"""Of AdamW."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """AdamW, a linear warm-up and a cosine to zero; short sequences first, then long ones."""

    steps: int
    batch_tokens: int = 4096
    """Tokens of a step, whole sequences."""
    short_length: int = 512
    """Tokens of a sequence, at first."""
    long_length: int = 512
    long_share: float = 0.0
    """Share of the steps, at the end, with sequences of ``long_length``."""
    learning_rate: float = 3e-4
    """The largest; it falls to zero."""
    warmup_steps: int = 20
    weight_decay: float = 0.1
    """Of matrices; vectors have none."""
    seed: int = 0
    checks: int = 10
    """How often progress is judged and saved."""
    multigrid: bool = False
    """Whether steps have many short sequences before few long ones: see ``multigrid``."""
    eight_bit: bool = False
    """Whether AdamW keeps its moments in 8 bits."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "short_length", "long_length", "checks"):
            if getattr(self, name) < 1:
                raise TrainingError(f"training: {name} is {getattr(self, name)}, give 1 or more")
        for length in {self.short_length, self.long_length}:
            if self.batch_tokens % length:
                raise TrainingError(
                    f"training: {self.batch_tokens} tokens per step are not whole sequences of"
                    f" {length}; give a multiple"
                )
        if not (self.learning_rate > 0 and 0 <= self.long_share <= 1 and self.weight_decay >= 0):
            raise TrainingError(
                f"training: learning rate {self.learning_rate:g}, long share {self.long_share:g},"
                f" weight decay {self.weight_decay:g}: give a rate above 0, a share from 0 to 1, a"
                " decay of 0 or more"
            )

        if self.multigrid and (self.long_share or self.short_length != self.long_length):
            raise TrainingError(
                f"training: multigrid makes its own short sequences of {self.long_length} tokens;"
                " give one length, and no long share"
            )

    @property
    def check_every(self) -> int:
        """Steps between two checks."""
        return max(1, self.steps // self.checks)

    def length_at(self, step: int) -> int:
        """Sequence length in tokens."""
        if self.multigrid:
            return shape_at(step, self.steps, self.long_length).length
        short = step < self.steps * (1 - self.long_share)
        return self.short_length if short else self.long_length

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        coarse = shape_at(step, self.steps, self.long_length).rate if self.multigrid else 1.0
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return (
            coarse * self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )
