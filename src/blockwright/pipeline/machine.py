"""The machine and the versions behind a figure."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import transformers

import blockwright


def processor_name() -> str:
    """The processor as its maker calls it."""
    description = Path("/proc/cpuinfo")
    if description.is_file():
        for line in description.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """One line: processor, its widest instructions, threads in use."""
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{processor_name()} ({instructions()}), {used}"


def instructions() -> str:
    """The instruction set that torch uses, such as ``AVX512``."""
    return str(torch.backends.cpu.get_cpu_capability())


def versions() -> dict[str, str]:
    """Versions that can change a result."""
    return {
        "blockwright": blockwright.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "cpu": instructions(),
    }
