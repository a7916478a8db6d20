"""The table of recovered fractions: cells are measured once, auto is compared with the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.adapters import table
from benchmarks.cells import measured, read_cell


def test_a_cell_is_measured_once_for_a_setting(tmp_path: Path) -> None:
    path, calls = tmp_path / "cells" / "a.json", list[int]()

    def measure() -> dict[str, Any]:
        calls.append(len(calls))
        return {"loss": 2.0}

    assert read_cell(path, {"steps": 3}) is None
    for _ in range(2):
        assert measured(path, {"steps": 3}, measure) == {"steps": 3, "loss": 2.0}
    assert len(calls) == 1
    measured(path, {"steps": 4}, measure)
    assert len(calls) == 2
    assert json.loads(path.read_text(encoding="utf-8"))["steps"] == 4


def cell(adapter: str, damage: str, recovered: float | None) -> dict[str, Any]:
    figures = {"refused": "no"} if recovered is None else {"recovered": recovered}
    return {"adapter": adapter, "damage": damage, **figures}


def test_auto_is_compared_with_the_best_adapter_and_not_with_training_everything() -> None:
    cells = [
        cell("auto", "D1", 0.5),
        cell("auto", "D1", 0.6),
        cell("lora", "D1", 0.52),
        cell("miss", "D1", 0.4),
        cell("full", "D1", 0.9),
        cell("auto", "D2", 0.3),
        cell("dora", "D2", None),
        cell("lora", "D2", 0.4),
    ]
    lines = table(cells, "R").splitlines()
    assert lines[2] == "| | D1 | D2 |"
    assert "| `auto` | 0.55 ± 0.07 | 0.30 |" in lines
    assert "| `full` | 0.90 | - |" in lines
    assert not any("dora" in line for line in lines)
    assert lines[-1] == "| auto less the best adapter | +0.03 | -0.10 |"
