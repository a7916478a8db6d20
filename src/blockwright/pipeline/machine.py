"""The machine and the versions behind a figure."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
import transformers

import blockwright
from blockwright.formats import native_kernel
from blockwright.machine import processor
from blockwright.types.report import Machine

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "scipy", "numpy")
"""Installed versions that a report names."""


def machine_line() -> str:
    """One line: processor, its widest instructions, threads in use."""
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{processor()} ({instructions()}), {used}"


def machine_of_report(device: str) -> Machine:
    """What a report tells of this machine; ``device``: where the fit computed."""
    on_gpu = torch.device(device).type == "cuda"
    named = {"blockwright": blockwright.__version__, "python": platform.python_version()}
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        device=f"{device} ({processor(device)})" if on_gpu else device,
        memory_bytes=memory_bytes(),
        versions=named | {name: _installed(name) for name in PACKAGES},
    )


def memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def instructions() -> str:
    """The instruction set that torch uses, such as ``AVX512``."""
    return str(torch.backends.cpu.get_cpu_capability())


def versions() -> dict[str, str]:
    """Versions that can change a result."""
    native = native_kernel()
    return {
        "blockwright": blockwright.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "cpu": instructions(),
        **({"native_kernel": native} if native else {}),
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
