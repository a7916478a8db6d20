"""Writes the tables of docs/attention.md from what ``blockwright bench attention`` printed.

    blockwright bench attention --threads 2 --page build/attention.html > build/attention.json
    python -m benchmarks.attention_page build/attention.json

Between the two marks stands what this writes, nothing else does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme import table
from blockwright.report.attention_tables import attention_tables

PAGE = Path(__file__).resolve().parents[1] / "docs" / "attention.md"
BEGIN, END = "<!-- figures: python -m benchmarks.attention_page -->", "<!-- end of figures -->"


def section(figures: Mapping[str, Any]) -> str:
    """All tables, and the machine that they were taken on."""
    parts = [
        f"### {found.title}\n\n{found.lead}\n\n{table(found.head, found.rows)}"
        for found in attention_tables(figures)
    ]
    machine = figures["machine"]
    what = f"{machine['processor']} ({machine['capability']}), {machine['threads']} threads"
    parts.append(f"`blockwright bench attention`: {what}, torch {machine['torch']}.\n")
    return "\n".join(parts)


def written(page: str, figures: Mapping[str, Any]) -> str:
    """The page with its tables in place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section(figures)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    figures = json.loads(parser.parse_args().figures.read_text(encoding="utf-8"))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()
