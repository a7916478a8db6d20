"""One fit in a process of its own, with the seconds of its stages: ``python -m ... REQUEST.json``.

Writes JSON.  All that comes after the folder is written (held-out text, reloading, report) proves
and describes it: evaluation.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockwright.pipeline import fit
from blockwright.progress import PlainProgress, Stage
from blockwright.stream.freed import return_freed_memory
from blockwright.types import Budget, FitRequest, Preset

LAST_STAGE = "write the folder"
"""What is left then is evaluation."""


class RecordingProgress(PlainProgress):
    """Lines on stderr, and when every outermost stage began and ended."""

    def __init__(self, marker: Path | None = None) -> None:
        super().__init__(sys.stderr)
        self.marker = marker
        self.origin = time.perf_counter()
        self.stages: list[tuple[str, float, float]] = []
        self._open = 0

    @contextmanager
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> Iterator[Stage]:
        began = self.seconds
        self._open += 1
        try:
            with super().stage(name, total, unit, expected_seconds=expected_seconds) as stage:
                yield stage
        finally:
            self._open -= 1
            if not self._open:
                self.stages.append((name, began, self.seconds))
                if name == LAST_STAGE and self.marker:
                    self.marker.touch()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.origin


def split_seconds(stages: list[tuple[str, float, float]], total: float) -> dict[str, Any]:
    """Seconds of fitting and of evaluation, and those of every stage; ``stages``: name, begin, end.

    Raises ``ValueError`` when no folder was written.
    """
    ends = [end for name, _, end in stages if name == LAST_STAGE]
    if not ends:
        raise ValueError(f"no stage {LAST_STAGE!r} among {[name for name, _, _ in stages]}")
    seconds: dict[str, dict[str, float]] = {"fit": {}, "evaluation": {}}
    for name, began, end in stages:
        part = seconds["fit" if end <= ends[-1] else "evaluation"]
        part[name] = part.get(name, 0.0) + end - began
    return {
        "fit_seconds": ends[-1],
        "evaluation_seconds": total - ends[-1],
        "fit_stages": seconds["fit"],
        "evaluation_stages": seconds["evaluation"],
    }


def main(data: dict[str, Any]) -> None:
    """Fit, and write the figures."""
    return_freed_memory()
    progress = RecordingProgress(Path(data["marker"]))
    request = FitRequest(
        model=data["model"],
        out=Path(data["out"]),
        budget=Budget(bits=data["bits"]),
        preset=Preset(data["preset"]),
        calibration=Path(data["calibration"]),
        library=Path(data["library"]),
        calibration_tokens=data["tokens"],
        eval_tokens=data["eval_tokens"],
        threads=data["threads"],
        speed=False,
    )
    result = fit(request, progress)
    unit = 1 if sys.platform == "darwin" else 1024
    figures = split_seconds(progress.stages, progress.seconds) | {
        "bits_per_weight": result.bits_per_weight,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    Path(data["answer"]).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
