"""Seconds and memory of a runner, and the versions that they are of."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.job import COMPRESSED_FILE, Job


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def saved(job: Job) -> int:
    """Say that the result is saved; largest resident memory of this process until then."""
    (Path(job.out) / COMPRESSED_FILE).touch()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, torch and transformers included."""
    return {name: version(name) for name in (*packages, "torch", "transformers")}
