"""Budgets: the limits a plan must keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blockwright.errors import BudgetError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the user asked for; exactly one of the three is set."""

    bits: float | None = None
    """Largest bits per weight of the block linears, scales and indices included."""
    size_bytes: int | None = None
    """Largest total size of the safetensors files."""
    ratio: float | None = None
    """Largest size as a fraction of the original's size."""

    def __post_init__(self) -> None:
        given = [v for v in (self.bits, self.size_bytes, self.ratio) if v is not None]
        if len(given) != 1:
            raise BudgetError(
                f"budget: {len(given)} limits given, give exactly one of --bits, --size, --ratio"
            )
        if given[0] <= 0:
            raise BudgetError(f"budget: {given[0]} is not positive")

    def __str__(self) -> str:
        if self.bits is not None:
            return f"{self.bits:g} bits per weight"
        if self.size_bytes is not None:
            return f"{self.size_bytes} bytes"
        return f"{self.ratio:g} of the original's size"


def parse_size(text: str) -> int:
    """Bytes of ``"4GB"``, ``"512MiB"`` or ``"1000000"``."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise BudgetError(f"size {text!r}: give bytes or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])
