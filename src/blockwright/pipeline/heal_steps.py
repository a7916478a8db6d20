"""Minutes into steps: one timed probe, once; what it says is stored and never asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PROBES = 2
"""Batches that are timed, behind one that is not."""
LEAST_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of what healing is made of."""

    step: float
    check: float
    """One look at the selection text."""
    taught_row: float
    """The original on one row of text, done once for each row."""
    rows_per_step: int
    rows: int
    """Rows of text that there are."""
    checks: int

    def seconds(self, steps: int) -> float:
        """What so many steps take."""
        rows = min(self.rows, steps * self.rows_per_step)
        return steps * self.step + rows * self.taught_row + self.checks * self.check

    def steps_within(self, seconds: float) -> int:
        """The most steps that take no longer; a few at least."""
        low, high = LEAST_STEPS, LEAST_STEPS
        while self.seconds(high) <= seconds:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle)
        return low


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def timed_again(call: Callable[[], object]) -> float:
    """Mean seconds of a call that was made once before."""
    call()
    return sum(timed(call) for _ in range(PROBES)) / PROBES
