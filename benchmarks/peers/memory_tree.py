"""Resident memory of a process with everything that it starts, watched from outside."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

PROCESSES = Path("/proc")
SECONDS = 0.1
"""Between two looks."""


class PeakWatch:
    """Looks at a process tree until the ``with`` statement ends."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.seen: list[tuple[float, int]] = []
        """Time of day and bytes, wherever there were more than ever before."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def peak_bytes(self, marker: Path | None = None) -> int:
        """The most that was seen before ``marker`` was written; the most of all without one."""
        until = marker.stat().st_mtime if marker and marker.is_file() else float("inf")
        return max((nbytes for when, nbytes in self.seen if when <= until), default=0)

    def _look(self) -> None:
        while not self._ended.wait(SECONDS):
            nbytes = tree_bytes(self.root)
            if nbytes > self.peak_bytes():
                self.seen.append((time.time(), nbytes))


def tree_bytes(root: int) -> int:
    """Resident bytes of a process and its descendants now; pages that they share count once for
    each.
    """
    parents = {pid: parent for pid in processes() if (parent := parent_of(pid)) is not None}
    tree, found = {root}, {root}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found} - tree
        tree |= found
    return sum(map(resident_bytes, tree))


def processes() -> list[int]:
    """Numbers of all that run."""
    return [int(path.name) for path in PROCESSES.iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int | None:
    """Number of the parent; None when the process has ended meanwhile."""
    try:
        text = (PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])


def resident_bytes(pid: int) -> int:
    """Resident memory; 0 when the process has ended meanwhile."""
    try:
        text = (PROCESSES / str(pid) / "statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
