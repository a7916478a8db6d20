"""Long tables, one cell at a time: one that was measured is a file, and is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockwright.checkpoint import write_json_atomic


def measured(
    path: Path, setting: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """A cell: its setting and its figures, read from its file where they are of this setting."""
    found = read_cell(path, setting)
    if found is None:
        found = {**setting, **measure()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, found)
    return found


def read_cell(path: Path, setting: Mapping[str, Any]) -> dict[str, Any] | None:
    """A cell that was measured with this setting."""
    if not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held if held.items() >= setting.items() else None


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)
