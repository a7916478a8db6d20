"""``blockwright library``: list, check and clean a folder of built variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from blockwright.cli import options
from blockwright.cli.output import (
    format_bytes,
    make_table,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)
from blockwright.errors import LibraryError
from blockwright.progress import stderr_progress
from blockwright.types import VariantRecord, parse_size

if TYPE_CHECKING:
    from blockwright.library import Library

app = typer.Typer(help="List, check and clean a library of built variants.")

Folder = Annotated[Path, typer.Argument(metavar="LIBRARY", help="A library that `fit` wrote.")]


@app.command("ls")
def list_entries(folder: Folder, *, as_json: options.AsJson = False) -> None:
    """List the variants of LIBRARY, and what it holds of each model."""
    library = open_library(folder)
    records = sorted(library.ls(), key=lambda record: (record.site, record.candidate))
    entries = [Entry.of(record, models_of(library)) for record in records]
    if as_json:
        print_json([e.record.to_json() | {"kind": e.kind, "model": e.model} for e in entries])
        return
    print_table(entry_table(entries))
    print_line("")
    print_table(model_table(entries))
    for name, count in library.other_bytes().items():
        print_line(f"{name}: {format_bytes(count)}")
    print_line(f"{len(records)} variants, {format_bytes(sum(r.stored_bytes for r in records))}")


@dataclass(frozen=True)
class Entry:
    """A variant with where it came from."""

    record: VariantRecord
    kind: str
    model: str
    """Empty for one that belongs to no problem yet."""

    @classmethod
    def of(cls, record: VariantRecord, models: Mapping[str, str]) -> Entry:
        """``models``: statistics digest -> model."""
        from blockwright.library import kind_of

        digest = str(record.inputs.get("statistics", "")).partition("/")[0]
        return cls(record, kind_of(record), models.get(digest, ""))


def models_of(library: Library) -> dict[str, str]:
    """Statistics digest -> model, for every problem."""
    return {problem.statistics: problem.model for problem in library.problems()}


def entry_table(entries: Sequence[Entry]) -> Table:
    """One row per variant."""
    rows = [
        (
            entry.record.site,
            entry.record.candidate,
            entry.record.key[:12],
            entry.kind,
            format_bytes(entry.record.stored_bytes),
            f"{entry.record.relative_error:.3g}"
            if entry.record.available
            else entry.record.unavailable,
        )
        for entry in entries
    ]
    columns = ("site", "candidate", "key", "kind", "size", "relative error")
    return make_table(columns, rows, left=4)


def model_table(entries: Sequence[Entry]) -> Table:
    """One row per model and kind."""
    counts: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        place = (entry.model or "no finished library", entry.kind)
        counts.setdefault(place, []).append(entry.record.stored_bytes)
    rows = [
        (model, kind, str(len(sizes)), format_bytes(sum(sizes)))
        for (model, kind), sizes in sorted(counts.items())
    ]
    return make_table(("model", "kind", "variants", "size"), rows, left=2)


@app.command("verify")
def verify(folder: Folder, *, as_json: options.AsJson = False) -> None:
    """Read every entry of LIBRARY back; exit code 1 if one is damaged."""
    with stdout_kept_clean():
        library = open_library(folder)
        megabytes = library.entry_bytes() / 1e6
        with stderr_progress().stage("verify", megabytes, "MB") as stage:
            damaged = library.verify(lambda read: stage.advance(read / 1e6))
    if as_json:
        print_json({"damaged": damaged})
    else:
        for key, reason in damaged.items():
            print_line(f"{key}: {reason}")
        print_line(f"{len(damaged)} damaged; the next fit builds them again")
    if damaged:
        raise typer.Exit(1)


@app.command("gc")
def collect_garbage(
    folder: Folder,
    *,
    keep_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help='Remove the least recently used entries over this size too: bytes or "4GB".',
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove what no plan of LIBRARY can use: damaged, unfinished and forgotten entries."""
    keep = None if keep_bytes is None else parse_size(keep_bytes)
    with stdout_kept_clean():
        removed = open_library(folder).gc(keep)
    if as_json:
        print_json(removed)
    else:
        print_line(f"removed {removed['entries']} entries, {format_bytes(removed['bytes'])} freed")


def open_library(folder: Path) -> Library:
    """The library of a folder that is one; nothing is made."""
    if not (folder / "library.json").is_file():
        found = "is no library" if folder.exists() else "does not exist"
        raise LibraryError(f"library {folder} {found}; `blockwright fit --library` makes one")
    from blockwright.library import Library

    return Library(folder)
