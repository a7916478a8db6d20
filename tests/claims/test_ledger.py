"""The ledger itself: bounds, grades, and the file of findings."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.claims import conftest
from tests.claims.ledger import Claim, Grade, claim, described

CLAIMS = """
import pytest
from tests.claims.ledger import Grade, claim

def stated(grade):
    return claim(
        method="m", family="f", paper="p", says="s", measures="x | y", grade=grade, at_most=1
    )

@stated(Grade.HARD)
def test_holds(): return 0.5
# end of the first

@stated(Grade.SOFT)
def test_soft_holds(): return [0, 1.5]

@stated(Grade.SOFT)
def test_soft_breaks(): return [2]

@stated(Grade.HARDWARE)
def test_needs_hardware(): pytest.skip("needs CUDA")

@stated(Grade.FIRM)
def test_takes_seeds(seed): return seed / 10

@stated(Grade.FIRM)
def test_takes_fixtures(tmp_path): return len(str(tmp_path)) * 0

# broken
@stated(Grade.FIRM)
def test_breaks():
    yield 0.5
    yield 1.5

@stated(Grade.FIRM)
def test_nothing_measured(): return ()

@pytest.mark.parametrize("x", [0.5, 2])
@stated(Grade.FIRM)
def test_takes_parameters(x): return x
"""


def bounded(
    at_least: float = -math.inf, at_most: float = math.inf, grade: Grade = Grade.HARD
) -> Claim:
    return Claim(
        method="m",
        family="f",
        paper="p",
        says="s",
        measures="x",
        grade=grade,
        at_least=at_least,
        at_most=at_most,
    )


def test_every_number_must_be_within_the_bound() -> None:
    stated = bounded(at_least=1, at_most=2)
    assert stated.holds([1, 1.5, 2])
    for measured in ([1.5, 2.1], [0.9, 1.5], [math.nan], []):
        assert not stated.holds(measured)


def test_bounds_read_as_words() -> None:
    assert bounded(at_most=0.65).bound == "at most 0.65"
    assert bounded(at_least=0.999).bound == "at least 0.999"
    assert bounded(at_least=1.5, at_most=2.2).bound == "1.5 to 2.2"


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (2, 1), (math.nan, 1)])
def test_claims_without_a_bound_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no bound, or an empty one"):
        bounded(*bounds)


def test_soft_claims_are_judged_by_their_mean() -> None:
    assert bounded(at_most=1, grade=Grade.SOFT).holds([0.5, 1.4])
    assert not bounded(at_most=1, grade=Grade.SOFT).holds([0.5, 1.6])
    assert not bounded(at_most=1, grade=Grade.SOFT).holds([])
    assert not bounded(at_most=1, grade=Grade.SOFT).holds([0.5, math.nan])


def test_a_claim_about_nothing_registered_gives_its_family_and_paper() -> None:
    terms = {"says": "s", "measures": "x", "grade": Grade.HARD, "at_most": 1.0}
    with pytest.raises(
        ValueError, match="'gptk': no method, format, adapter or recipe; give its family and paper"
    ):
        claim(method="gptk", **terms)  # type: ignore[arg-type]
    assert described("gptq")[0] == "quantize"
    assert "Frantar" in described("gptq")[1]
    assert described("int")[0] == "format"


@dataclass
class Ran:
    """A run of claims written to a folder of their own."""

    root: Path
    code: int
    text: str

    @property
    def page(self) -> Path:
        return self.root / "docs" / "claims.md"

    @property
    def json(self) -> Path:
        return self.root / "src" / "blockwright" / "claims.json"

    def rows(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self.json.read_text(encoding="utf-8"))["claims"]
        return {row["test"].partition("::test_")[2]: row for row in rows}


RunClaims = Callable[..., Ran]


@pytest.fixture
def run_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunClaims:
    """Run tests of a folder as strictly as the project does, and record them."""

    def run(claims: str, *options: str, plugins: Sequence[object] = (conftest,)) -> Ran:
        (tmp_path / "test_claims.py").write_text(claims)
        strict = ["-c", "/dev/null", "--rootdir", str(tmp_path), "-W", "error"]
        strict += ["-p", "no:cacheprovider", "-o", "markers=claim", "--import-mode=importlib"]
        record = [f"--claims-record={tmp_path}"] if plugins else []
        sys.modules.pop("test_claims", None)
        capsys.readouterr()
        code = pytest.main([*strict, *record, "-rA", str(tmp_path), *options], plugins)
        return Ran(tmp_path, code, capsys.readouterr().out)

    return run


def test_grades_decide_the_outcome_and_every_finding_is_written(run_claims: RunClaims) -> None:
    ran = run_claims(CLAIMS)
    assert ran.code == 1
    assert "3 failed, 4 passed, 1 skipped, 2 deselected" in ran.text
    assert "measured (0.5, 1.5), bound at most 1" in ran.text
    states = {name: row["state"] for name, row in ran.rows().items()}
    assert states == {
        "holds": "holds",
        "breaks": "not reproduced",
        "nothing_measured": "not reproduced",
        "soft_holds": "not measured",
        "soft_breaks": "not measured",
        "needs_hardware": "needs hardware",
        "takes_seeds": "holds",
        "takes_fixtures": "holds",
        "takes_parameters": "not reproduced",
    }
    assert ran.rows()["takes_seeds"]["seeds"] == [0, 1, 2]
    assert ran.rows()["takes_seeds"]["highest"] == 0.2
    assert ran.rows()["takes_parameters"]["count"] == 2
    assert ran.rows()["needs_hardware"]["reason"] == "needs CUDA"
    assert "measured_on" not in ran.rows()["holds"]


def test_soft_claims_are_dated_and_kept_until_what_they_say_changes(run_claims: RunClaims) -> None:
    kept = CLAIMS.partition("# broken")[0]
    first = run_claims(kept, "--soft")
    assert first.code == 0
    assert "1 xfailed" in first.text
    rows = first.rows()
    assert rows["soft_holds"]["state"] == "holds"
    assert rows["soft_breaks"]["state"] == "not reproduced"
    assert len(rows["soft_breaks"]["measured_on"]["date"]) == len("2026-01-31")
    page = first.page.read_text(encoding="utf-8")
    before = (page, first.json.read_text(encoding="utf-8"))
    again = run_claims(kept)
    assert (again.page.read_text("utf-8"), again.json.read_text("utf-8")) == before
    changed = run_claims(kept.replace("measures=", "at_least=-9, measures="))
    assert changed.rows()["soft_holds"]["state"] == "not measured"


def test_nothing_is_written_unless_all_was_measured(run_claims: RunClaims) -> None:
    part = run_claims(CLAIMS, "-k", "seeds")
    assert part.code == pytest.ExitCode.USAGE_ERROR
    assert "claims not recorded; not measured in this run: test_claims.py::test_holds," in part.text
    crashed = run_claims(CLAIMS.replace("return 0.5", "return 1 / 0"))
    assert crashed.code == pytest.ExitCode.USAGE_ERROR
    skipped = run_claims(CLAIMS.replace("return 0.5", "pytest.skip('no time')"))
    assert "a hard claim must be measured: no time" in skipped.text
    assert not part.page.exists()
    assert not part.json.exists()


def test_a_claim_outside_the_ledger_cannot_pass(run_claims: RunClaims) -> None:
    assert "1 failed" in run_claims(CLAIMS.partition("# end of the first")[0], plugins=()).text
