"""Watches what the process does to files, by an audit hook: writes outside, pickles anywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2), "os.symlink": (1, 2)}
CHANGES |= {"os.rename": (1, 3), "os.link": (1, 3), "os.truncate": (0, 0)}
"""Event -> places of the path that changes, and of the folder that it is relative to."""
HARMLESS = ("/dev/null", "/dev/shm", "/proc/self")


@dataclass
class Watch:
    """What was seen while it stood."""

    allowed: Sequence[Path]
    faults: list[str] = field(default_factory=list)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """One event of ``sys.addaudithook``."""
        if event == "pickle.find_class":
            self.faults.append(f"a pickle asked for {arguments}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self._check(event, arguments[0])
        elif event in CHANGES:
            path, folder = (arguments[place] for place in CHANGES[event])
            self._check(event, path, folder if isinstance(folder, int) else -1)

    def _check(self, event: str, path: Any, folder: int = -1) -> None:
        """``folder``: an open one that the path is relative to; an open file was checked before."""
        if not isinstance(path, str | bytes | os.PathLike):
            return
        base = os.path.realpath(f"/proc/self/fd/{folder}") if folder >= 0 else ""
        name = os.path.realpath(os.path.join(base, os.fsdecode(path)))
        bytecode = "__pycache__" in name
        inside = any(Path(name).is_relative_to(folder) for folder in self.allowed)
        if not (bytecode or inside or name.startswith(HARMLESS)):
            self.faults.append(f"{event} {name}")


_watches: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches:
        watch.see(event, arguments)


@contextmanager
def nothing_else_happens(*allowed: Path) -> Iterator[None]:
    """Fails when something is written outside the allowed folders, or a pickle is loaded."""
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    watch = Watch([folder.resolve() for folder in allowed])
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
    assert not watch.faults, watch.faults


_installed: list[bool] = []
