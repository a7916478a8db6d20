"""What figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch
import transformers

from blockwright.formats import native_kernel

UNKNOWN_CACHE_BYTES = 64 * 2**20
"""Taken for the last cache where the system does not tell its size."""


def describe_machine(device: str = "cpu") -> dict[str, str | int]:
    """Everything that decides how long a product takes here."""
    native = native_kernel()
    return {
        "processor": processor(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **({"native_kernel": native} if native else {}),
    }


def processor(device: str = "cpu") -> str:
    """Name of the processor that multiplies."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def last_cache_bytes() -> int:
    """Size of the largest cache between processor and memory."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text(encoding="ascii").strip() for path in folder.glob("index*/size")]
    found = [re.fullmatch(r"(\d+)([KMG]?)", size) for size in sizes]
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    known = [int(match[1]) * units[match[2]] for match in found if match]
    return max(known, default=UNKNOWN_CACHE_BYTES)
