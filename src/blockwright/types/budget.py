"""Budgets: the limits a plan must keep, all at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from blockwright.errors import BudgetError
from blockwright.types.workload import DEFAULT_CONTEXT, Phase, Workload

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the user asked for: at most one of bits, size and ratio, and with it or alone a limit
    on memory and one on speed.
    """

    bits: float | None = None
    """Largest bits per weight of the block linears, scales and indices included."""
    size_bytes: int | None = None
    """Largest total size of the safetensors files."""
    ratio: float | None = None
    """Largest size as a fraction of the original's size."""
    ram_bytes: int | None = None
    """Largest memory of the loaded model at ``context`` tokens of batch 1: weights as they are
    resident, KV cache, activations.  The Python process itself comes on top."""
    speedup: float | None = None
    """Least times as fast as the original, in ``phase`` with ``batch`` rows at ``context``."""
    phase: Phase = Phase.DECODE
    batch: int = 1
    context: int = DEFAULT_CONTEXT

    def __post_init__(self) -> None:
        sizes = [v for v in (self.bits, self.size_bytes, self.ratio) if v is not None]
        given = [v for v in (*sizes, self.ram_bytes, self.speedup) if v is not None]
        if len(sizes) > 1:
            raise BudgetError(
                f"budget: {len(sizes)} limits on the size given, give one of --bits, --size,"
                " --ratio; --ram and --speedup combine with it"
            )
        if not given:
            raise BudgetError(
                "budget: 0 limits given, give one of --bits, --size, --ratio, or --ram, --speedup"
            )
        if min(given) <= 0:
            raise BudgetError(f"budget: {min(given)} is not positive")
        if self.speedup is not None and self.speedup <= 1:
            raise BudgetError(
                f"budget: a speedup of {self.speedup:g} is no speedup; give more than 1"
            )
        if self.batch < 1 or self.context < 1:
            raise BudgetError(
                f"budget: batch {self.batch} and context {self.context}: give 1 or more"
            )

    @property
    def workload(self) -> Workload:
        """What ``speedup`` is measured on."""
        return Workload(phase=self.phase, batch=self.batch, context=self.context)

    @property
    def counts_files(self) -> bool:
        """Whether tables count: under bits alone only the block linears do."""
        return self.bits is None or self.ram_bytes is not None or self.speedup is not None

    def without_speedup(self) -> Budget | None:
        """The other limits; None where there are none."""
        sizes = (self.bits, self.size_bytes, self.ratio, self.ram_bytes)
        return replace(self, speedup=None) if any(sizes) else None

    def __str__(self) -> str:
        parts = []
        if self.bits is not None:
            parts.append(f"{self.bits:g} bits per weight")
        if self.size_bytes is not None:
            parts.append(f"{self.size_bytes} bytes")
        if self.ratio is not None:
            parts.append(f"{self.ratio:g} of the original's size")
        if self.ram_bytes is not None:
            parts.append(f"{self.ram_bytes} bytes of memory at {self.context} tokens")
        if self.speedup is not None:
            parts.append(f"{self.speedup:g} times as fast in {self.workload}")
        return ", ".join(parts)


def parse_size(text: str) -> int:
    """Bytes of ``"4GB"``, ``"512MiB"`` or ``"1000000"``."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise BudgetError(f"size {text!r}: give bytes or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])
