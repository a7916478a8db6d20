"""The claims ledger: what each paper says, and whether it holds here."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files

NOT_MEASURED = "not measured"
STATES = ("not reproduced", "holds", "needs hardware", NOT_MEASURED)
"""What stands for several claims together: the first of these that one of them is in."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed of one method or format."""

    text: str
    """Its claims, one after the other."""
    state: str = NOT_MEASURED
    """holds, not reproduced, needs hardware, or not measured."""


def read_ledger() -> dict[str, Claim]:
    """Claims by method or format name, as last measured (``make claims``)."""
    source = files("blockwright") / "claims.json"
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in json.loads(source.read_text(encoding="utf-8"))["claims"]:
        rows[row["name"]].append(row)
    return {
        name: Claim(
            text="; ".join(row["says"] for row in found),
            state=together([row["state"] for row in found]),
        )
        for name, found in rows.items()
    }


def together(states: Collection[str]) -> str:
    """One state for several claims: any that is not reproduced shows."""
    return next(state for state in STATES if state in states)


def header_section(docstring: str | None, name: str) -> str:
    """A section of a method file's header, such as ``Paper:``, on one line; empty if missing."""
    found = re.search(rf"^{name}:(.*?)(?=^[A-Z][A-Za-z ]*:|^\S|\Z)", docstring or "", re.M | re.S)
    return " ".join(found[1].split()) if found else ""
