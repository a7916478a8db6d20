"""One loop times every engine: ``python -m benchmarks.peers.runners.decode_X PHASE JOB.json``.

``prepare`` writes what the peer stores, ``measure`` loads it in a fresh process and times it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.job import SpeedAnswer, SpeedJob

PREFILLS = 4
"""Times that the prompt is read; the first one is not counted."""
PHASES = ("prepare", "measure")


class Engine(Protocol):
    """A loaded model with one sequence in its cache."""

    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def read(self, ids: Sequence[int]) -> int:
        """Forget everything, read the prompt; the likeliest token behind it."""

    def step(self, token: int) -> int:
        """Read one token; the likeliest behind it."""

    def logits(self) -> list[float]:
        """Of the last position."""


def main(prepare: Callable[[SpeedJob], None], load: Callable[[SpeedJob], Engine]) -> None:
    """Do one phase of the job on the command line."""
    phase, path = sys.argv[1:]
    job = SpeedJob.read(Path(path))
    if phase == "prepare":
        prepare(job)
    else:
        measure(job, load).write(Path(job.out))


def measure(job: SpeedJob, load: Callable[[SpeedJob], Engine]) -> SpeedAnswer:
    """Read the prompt a few times, then decode greedily behind it."""
    library = resident_bytes()
    engine = load(job)
    prefills = [timed(engine.read, job.ids) for _ in range(PREFILLS)]
    logits = engine.logits()
    token, steps = prefills[-1][0], []
    for _ in range(job.decode_tokens):
        token, seconds = timed(engine.step, token)
        steps.append(seconds)
    return SpeedAnswer(
        prefill_seconds=min(seconds for _, seconds in prefills[1:]),
        decode_seconds=min(steps),
        library_bytes=library,
        resident_bytes=resident_bytes(),
        logits=logits,
        settings=dict(engine.settings),
        versions=dict(engine.versions),
    )


def timed(call: Callable[[Any], int], argument: Any) -> tuple[int, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    found = call(argument)
    return found, time.perf_counter() - began


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
