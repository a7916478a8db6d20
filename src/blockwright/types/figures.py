"""Figures as people read them, and as any JSON parser does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(data: Any) -> Any:
    """The same data with None for NaN and infinities."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data


def format_bytes(count: float) -> str:
    """``15.2 MB``; powers of ten, as file sizes and budgets are."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
