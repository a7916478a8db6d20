"""``blockwright library``: list, check and clean a folder of built variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

if TYPE_CHECKING:
    from blockwright.library import Library

app = typer.Typer(help="List, check and clean a library of built variants.")

Folder = Annotated[Path, typer.Argument(metavar="LIBRARY", help="A library that `fit` wrote.")]


@app.command("ls")
def list_entries(folder: Folder, *, as_json: options.AsJson = False) -> None:
    """List the variants of LIBRARY."""
    records = sorted(open_library(folder).ls(), key=lambda record: (record.site, record.candidate))
    if as_json:
        print_json([record.to_json() for record in records])
        return
    rows = [
        (
            record.site,
            record.candidate,
            record.key[:12],
            format_bytes(record.stored_bytes),
            f"{record.relative_error:.3g}" if record.available else record.unavailable,
        )
        for record in records
    ]
    columns = ("site", "candidate", "key", "size", "relative error")
    print_table(make_table(columns, rows, left=3))
    print_line(f"{len(records)} variants, {format_bytes(sum(r.stored_bytes for r in records))}")


@app.command("verify")
def verify(folder: Folder, *, as_json: options.AsJson = False) -> None:
    """Read every entry of LIBRARY back; exit code 1 if one is damaged."""
    with stdout_kept_clean():
        damaged = open_library(folder).verify()
    if as_json:
        print_json({"damaged": damaged})
    else:
        for key, reason in damaged.items():
            print_line(f"{key}: {reason}")
        print_line(f"{len(damaged)} damaged; the next fit builds them again")
    if damaged:
        raise typer.Exit(1)


@app.command("gc")
def collect_garbage(folder: Folder, *, as_json: options.AsJson = False) -> None:
    """Remove what no plan of LIBRARY can use: damaged, unfinished and forgotten entries."""
    with stdout_kept_clean():
        removed = open_library(folder).gc()
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
