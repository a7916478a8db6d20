"""How long one forward of a folder takes, and what it holds: two folders in turn, each time in a
fresh process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from blockwright.evaluate.fresh import Loading, answers_of
from blockwright.types import Phase, Workload

CHILD = "blockwright.evaluate.timed"
TURNS = 3
"""Fresh processes for each folder."""
STEPS = {Phase.DECODE: 24, Phase.PREFILL: 4}
"""Forwards in each of them."""


@dataclass(frozen=True, kw_only=True)
class TimedFolder:
    """What a fresh process found; the least of each over several."""

    least_ns: int
    """Of one forward."""
    library_bytes: int
    """Resident before the model was loaded: interpreter and libraries."""
    loaded_bytes: int
    resident_bytes: int
    """After the forwards, with the KV cache."""

    @property
    def model_bytes(self) -> int:
        """What the model itself takes: weights, cache, activations."""
        return self.resident_bytes - self.library_bytes


def time_folder(loading: Loading, workload: Workload) -> TimedFolder:
    """Load a folder in a fresh process and time it; ``ModelError`` when it does not load."""
    request = {**asdict(loading), **workload.to_json(), "folder": str(loading.folder)}
    return TimedFolder(**_ask(request | {"steps": STEPS[workload.phase]}))


def time_in_turn(
    first: Loading, second: Loading, workload: Workload, turns: int = TURNS
) -> tuple[TimedFolder, TimedFolder]:
    """Both folders, interleaved; least figures of each."""
    found: tuple[list[TimedFolder], list[TimedFolder]] = ([], [])
    for _ in range(turns):
        for loading, times in zip((first, second), found, strict=True):
            times.append(time_folder(loading, workload))
    return _least(found[0]), _least(found[1])


def _least(times: list[TimedFolder]) -> TimedFolder:
    figures = [asdict(time) for time in times]
    return TimedFolder(**{name: min(one[name] for one in figures) for name in figures[0]})


def _ask(request: dict[str, Any]) -> dict[str, int]:
    failed = f"{request['folder']} cannot be timed in a fresh process"
    *_, answer = answers_of(CHILD, request, failed)
    return answer
