"""Figures of the page as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from blockwright.types import Candidate

NOTHING = "–"
MINUS = "−"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def small(value: float | None) -> str:
    """Two significant digits: ``0.00097``, ``2.1×10⁻⁵``, ``140``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", MINUS)
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace("-", MINUS)


def column(values: Sequence[float | None]) -> list[str]:
    """Figures of one column with one number of decimals, two digits of the least shown."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    least = min(known, default=1.0)
    decimals = min(8, max(0, 1 - math.floor(math.log10(least))))
    return [
        NOTHING if v is None or not math.isfinite(v) else f"{v:,.{decimals}f}".replace("-", MINUS)
        for v in values
    ]


def ratio(value: float | None) -> str:
    """``0.38×``, ``2.4×``, ``12×``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    digits = 2 if value < 0.995 else 1 if value < 9.95 else 0
    return f"{value:.{digits}f}×"


def percent(value: float | None) -> str:
    """``97.70%``."""
    return NOTHING if value is None else f"{value:.2%}"


def share(value: float | None) -> str:
    """``12.3%``."""
    return NOTHING if value is None else f"{value:.1%}"


def change(before: float | None, after: float | None) -> str:
    """Relative change with its sign: ``+0.03%``, ``−0.03%``, ``+12.1%``."""
    if before is None or after is None or not before:
        return NOTHING
    moved = after / before - 1
    if not math.isfinite(moved):
        return NOTHING
    return f"{moved:+.{2 if abs(moved) < 0.00995 else 1}%}".replace("-", MINUS)


def quotient(above: float | None, below: float | None) -> float | None:
    """A ratio, where both are there."""
    return above / below if above is not None and below else None


def grouped(count: float | None) -> str:
    """``16,384``."""
    return NOTHING if count is None else f"{count:,.0f}"


def tokens_per_second(value: float | None) -> str:
    """Two decimals below ten, none above a hundred."""
    if value is None:
        return NOTHING
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def split_candidate(text: str) -> tuple[str, str]:
    """Format and methods of a candidate: ``int4-g64``, ``awq>gptq``."""
    candidate = Candidate.parse(text)
    bare = Candidate(candidate.format, candidate.values, candidate.plus)
    options = ",".join(f"{name}={value}" for name, value in candidate.options)
    return str(bare), ">".join(candidate.methods) + (f"@{options}" if options else "")


def count(value: float) -> str:
    """``5.9 million``, ``1.1 billion``."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return grouped(value)


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers with their runs drawn together: ``3, 5 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
