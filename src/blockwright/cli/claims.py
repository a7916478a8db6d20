"""The claims ledger: what each paper says, and whether it holds here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.resources import files

NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper's checkable claim."""

    text: str
    state: str = NOT_MEASURED
    """holds, not reproduced, needs hardware, or not measured."""


def read_ledger() -> dict[str, Claim]:
    """Claims by method or format name, as last measured; empty where none was written yet."""
    source = files("blockwright") / "claims.json"
    if not source.is_file():
        return {}
    entries = json.loads(source.read_text(encoding="utf-8"))
    return {
        name: Claim(text=entry["claim"], state=entry["state"]) for name, entry in entries.items()
    }


def header_section(docstring: str | None, name: str) -> str:
    """A section of a method file's header, such as ``Paper:``, on one line; empty if missing."""
    found = re.search(rf"^{name}:(.*?)(?=^[A-Z][A-Za-z ]*:|^\S|\Z)", docstring or "", re.M | re.S)
    return " ".join(found[1].split()) if found else ""
