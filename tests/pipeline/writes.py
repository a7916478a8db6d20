"""Everything that changes the disk, counted, and stopped from some change on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WRITES = (
    (os, "pwrite"),
    (os, "replace"),
    (Path, "replace"),
    (Path, "write_text"),
    (Path, "open"),
    (shutil, "copyfile"),
)
REMOVALS = ((os, "mkdir"), (os, "rmdir"), (os, "unlink"), (os, "fsync"))
"""What a kill may come before, too."""


class Writes:
    """Counts changes and calls ``stop`` instead of the ``stops_at``-th and all behind it."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        stop: Callable[[], object],
        places: tuple[tuple[Any, str], ...] = WRITES,
    ) -> None:
        self.count, self.stops_at, self.stop = 0, 10**9, stop
        for place, name in places:
            patch.setattr(place, name, self._counted(getattr(place, name), name))

    def _counted(self, change: Callable[..., Any], name: str) -> Callable[..., Any]:
        def checked(*args: Any, **options: Any) -> Any:
            if name != "open" or "w" in str((*args[1:], *options.values())):
                self.count += 1
                if self.count >= self.stops_at:
                    self.stop()
            return change(*args, **options)

        return checked
