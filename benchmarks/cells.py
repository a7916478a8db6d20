"""Long tables, one cell at a time: a cell that was measured is a file, and is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockwright.checkpoint import write_json_atomic


def measured(
    folder: Path, name: str, setting: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """The figures of a cell beside its setting, from ``folder/name.json`` where they are those of
    this setting.
    """
    path = folder / f"{name}.json"
    if path.is_file():
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if held.items() >= setting.items():
            return held
    found = {**setting, **measure()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, found)
    return found


def mean(values: list[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)
