"""The machine that figures were taken on.  Imports no torch: versions are those installed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blockwright import __version__
from blockwright.types.report import Machine

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "scipy", "numpy")


def describe_machine(*, threads: int, device: str, accelerator: str = "") -> Machine:
    """This machine; ``accelerator`` is the name of a GPU, where one computes."""
    versions = {"blockwright": __version__, "python": platform.python_version()}
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        device=f"{device} ({accelerator})" if accelerator else device,
        memory_bytes=memory_bytes(),
        versions=versions | {name: _installed(name) for name in PACKAGES},
    )


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
