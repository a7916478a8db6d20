"""Axes: values to positions, and round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A range of values over a range of positions, linear or in logarithms."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Position, rounded to a tenth."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int, text: Callable[[float], str]) -> tuple[Tick, ...]:
        """At most ``most`` round values inside the range."""
        values = _powers(self.low, self.high, most) if self.logarithmic else None
        values = values or _round_steps(self.low, self.high, most)
        return tuple(Tick(self(value), text(value)) for value in values)


def linear(values: Sequence[float], start: float, end: float, margin: float = 0.05) -> Scale:
    """A linear scale over all values, with a margin as a fraction of their range."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low - room, high + room, start, end)


def logarithmic(values: Sequence[float], start: float, end: float, margin: float = 0.08) -> Scale:
    """A logarithmic scale over all values (positive), with a margin in decades."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * margin, 0.1)
    return Scale(10 ** (low - room), 10 ** (high + room), start, end, logarithmic=True)


def _powers(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten; fewer of them over more decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(found) <= most:
            return found if len(found) > 1 else []
    return found[:: math.ceil(len(found) / most)]


def _round_steps(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
