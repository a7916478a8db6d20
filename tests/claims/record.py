"""The record of all claims: ``claims.json`` in the package and ``docs/claims.md`` for people.

Hard, firm and hardware claims are measured anew by every run that records; nothing in their part
depends on the time.  Soft claims keep what the last ``make claims-long`` found, with its date.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from blockwright.pipeline.machine import machine_line, versions
from tests.claims.ledger import Claim, Finding, Grade, State

HERE = Path(__file__).parent
JSON_FILE = Path("src") / "blockwright" / "claims.json"
PAGE = Path("docs") / "claims.md"
FAMILIES = ("format", "quantize", "sparsify", "lowrank", "width", "depth", "plan")
"""First in the page, in this order; the others follow by name."""
HEAD = """# Claims

What each method's paper or format's law says, what is measured for it here, and whether it holds.
Written by `make claims` (hard, firm, hw) and `make claims-long` (soft too); not to be edited.

- **hard**: a guarantee; **firm**: a wide margin.  Every number must keep the bound, or the build
  breaks.
- **soft**: statistical; the mean must keep the bound, else it is recorded as not reproduced.
- **hw**: needs hardware; skipped with a reason where it is not there.
"""
COLUMNS = ("name", "what it says", "what we measure", "bound", "ours", "grade", "state", "test")

Row = dict[str, Any]


@dataclass
class Record:
    """What one run was told and what it found."""

    stated: dict[str, Claim] = field(default_factory=dict)
    """Test -> claim, in the order of the files."""
    findings: dict[str, Finding] = field(default_factory=dict)

    def state(self, claim: Claim, test: str) -> None:
        self.stated[test] = claim

    def add(self, finding: Finding) -> None:
        """Note a finding; those of one test with several parameters become one."""
        before = self.findings.get(finding.test)
        if before is not None:
            finding = replace(finding, measured=before.measured + finding.measured)
        self.findings[finding.test] = finding

    def write(self, root: Path, *, soft: bool) -> list[str]:
        """Write both files under ``root``; returns what is missing, and writes nothing then."""
        needed = [t for t, c in self.stated.items() if soft or c.grade is not Grade.SOFT]
        here = stated_claims() if (root / "tests" / "claims").is_dir() else self.stated
        missing = [test for test in needed if test not in self.findings]
        missing += [test for test in here if test not in self.stated]
        if missing or not needed:
            return missing or ["any claim"]
        before = {row["test"]: row for row in read(root / JSON_FILE)["claims"]}
        rows = [self._row(test, claim, before.get(test)) for test, claim in self.stated.items()]
        data = {"measured_on": surroundings(), "claims": in_order(rows)}
        for path, text in ((JSON_FILE, as_json(data)), (PAGE, page(data))):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return []

    def _row(self, test: str, claim: Claim, before: Row | None) -> Row:
        finding = self.findings.get(test)
        if finding is not None:
            return statement(claim, test) | result(finding)
        stated = statement(claim, test)
        if before is not None and all(before[key] == value for key, value in stated.items()):
            return before
        return stated | {"state": State.NOT_MEASURED.value}


def stated_claims() -> dict[str, Claim]:
    """Every claim of this folder, by test, without running any."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        for name, value in vars(import_module(f"tests.claims.{path.stem}")).items():
            for mark in getattr(value, "pytestmark", []):
                if mark.name == "claim":
                    found[f"{path.name}::{name}"] = mark.args[0]
    return found


def statement(claim: Claim, test: str) -> Row:
    """What is claimed; a recorded result counts only for this very statement."""
    return {
        "name": claim.method,
        "family": claim.family,
        "paper": claim.paper,
        "says": claim.says,
        "measures": claim.measures,
        "bound": claim.bound,
        "grade": claim.grade.value,
        "seeds": list(claim.seeds),
        "test": test,
    }


def result(finding: Finding) -> Row:
    """What was found; three digits, which another run on the same machine repeats."""
    row: Row = {"state": finding.state.value}
    if finding.reason:
        row["reason"] = finding.reason
    if finding.measured:
        ends = min(finding.measured), max(finding.measured)
        mean = sum(finding.measured) / len(finding.measured)
        row |= {"lowest": rounded(ends[0]), "highest": rounded(ends[1]), "mean": rounded(mean)}
        row["count"] = len(finding.measured)
    if finding.claim.grade is Grade.SOFT:
        row["measured_on"] = {"date": datetime.date.today().isoformat(), **surroundings()}
    return row


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def surroundings() -> dict[str, str]:
    """Machine and versions of a run."""
    return {"machine": machine_line(), **versions()}


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By family and name; claims of one name stay in the order of their files."""
    return sorted(rows, key=lambda row: (*_rank(row["family"]), row["name"]))


def _rank(family: str) -> tuple[int, str]:
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def read(path: Path) -> dict[str, Any]:
    """The recorded file; empty where there is none."""
    empty: dict[str, Any] = {"measured_on": {}, "claims": []}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else empty


def as_json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def page(data: Mapping[str, Any]) -> str:
    """The page of a record."""
    rows: Sequence[Row] = data["claims"]
    sections = [HEAD, f"{_counted(rows)}\n\nMeasured on {_line(data['measured_on'])}.\n"]
    for family in dict.fromkeys(row["family"] for row in rows):
        inside = [row for row in rows if row["family"] == family]
        sections.append(f"## {family.capitalize()}\n\n{_papers(inside)}\n")
        for soft, title in ((False, ""), (True, "Statistical:\n\n")):
            chosen = [row for row in inside if (row["grade"] == Grade.SOFT) is soft]
            if chosen:
                sections.append(title + _table(chosen))
    return "\n".join(sections)


def _counted(rows: Sequence[Row]) -> str:
    counts = [(state.value, sum(row["state"] == state for row in rows)) for state in State]
    return f"{len(rows)} claims: " + ", ".join(f"{state} {n}" for state, n in counts if n) + "."


def _line(surrounding: Mapping[str, str]) -> str:
    machine, *rest = surrounding.items()
    return ", ".join([machine[1], *(f"{name} {value}" for name, value in rest if name != "cpu")])


def _papers(rows: Sequence[Row]) -> str:
    papers: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        papers[row["name"]][row["paper"]] = None
    return "\n".join(f"- `{name}`: {'; '.join(found)}" for name, found in papers.items())


def _table(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row) for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    dates = {row["measured_on"]["date"]: row["measured_on"] for row in rows if "measured_on" in row}
    notes = [
        f"\nMeasured {date} on {_line({k: v for k, v in on.items() if k != 'date'})}.\n"
        for date, on in sorted(dates.items())
    ]
    return text + "".join(notes)


def _cells(row: Row) -> list[str]:
    file, _, name = row["test"].partition("::")
    state = row["state"] + (f": {row['reason']}" if row.get("reason") else "")
    cells = [
        *(f"`{row['name']}`", row["says"], row["measures"], row["bound"], _ours(row)),
        *(row["grade"], state, f"[`{name}`](../tests/claims/{file})"),
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def _ours(row: Row) -> str:
    """``0.41 to 0.55 (9 numbers, seeds 0, 1, 2)``."""
    if "count" not in row:
        return ""
    ends = [f"{row[key]:g}" for key in ("lowest", "highest")]
    figure = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    if row["grade"] == Grade.SOFT:
        figure = f"{row['mean']:g} ({figure})" if row["count"] > 1 else figure
    details = [f"{row['count']} numbers"] if row["count"] > 1 else []
    details += [f"seeds {', '.join(map(str, row['seeds']))}"] if row["seeds"] else []
    return f"{figure} ({'; '.join(details)})" if details else figure
