"""Results on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table

from blockwright.progress import Progress
from blockwright.types.figures import finite, format_bytes

__all__ = [
    "figure",
    "finite",
    "format_bytes",
    "make_table",
    "print_figures",
    "print_json",
    "print_line",
    "print_table",
    "stdout_kept_clean",
]

IMPORT_SECONDS = 4.0


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Whatever libraries print meanwhile goes to stderr."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def loading_told(progress: Progress) -> Iterator[None]:
    """Around the imports that take seconds."""
    with progress.stage("load torch and transformers", expected_seconds=IMPORT_SECONDS):
        yield


def print_json(data: Any) -> None:
    """One JSON value; figures that are not finite become null, so that any parser reads it."""
    print(json.dumps(finite(data), indent=2))


def print_table(table: Table) -> None:
    """A table as wide as the terminal; into a pipe, as wide as it needs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(120, console.measure(table).maximum))
    console.print(table)


def print_line(text: str) -> None:
    """A line of plain text; long paths are not broken."""
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A plain table; the first ``left`` columns are text, the others figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_figures(data: Mapping[str, Any]) -> None:
    """Names and values of a flat mapping, one a line."""
    rows = [(name.replace("_", " "), figure(name, value)) for name, value in data.items()]
    table = make_table(("", ""), rows, left=2)
    table.show_header = False
    print_table(table)


def figure(name: str, value: Any) -> str:
    """A value as its name's unit suffix asks."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_bytes") or "_bytes_" in name:
            return format_bytes(value)
        if name.endswith("seconds"):
            return f"{value:.1f} s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
