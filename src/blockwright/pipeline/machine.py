"""The machine and the versions behind a figure."""

from __future__ import annotations

import platform

import torch
import transformers

import blockwright
from blockwright.report.machine import processor_name


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
