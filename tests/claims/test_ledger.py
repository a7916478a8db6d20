"""The ledger itself: bounds, grades, and the file of findings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims.ledger import Claim, Grade

ROOT = Path(__file__).parents[2]
CLAIMS = """
import pytest
from tests.claims.ledger import Grade, claim

def stated(grade):
    return claim(method="m", paper="p", says="s", measures="x", grade=grade, at_most=1)

@stated(Grade.HARD)
def test_holds(): return 0.5

@stated(Grade.FIRM)
def test_breaks():
    yield 0.5
    yield 1.5

@stated(Grade.SOFT)
def test_not_reproduced(): return [2]

@stated(Grade.HARDWARE)
def test_needs_hardware(): pytest.skip("needs CUDA")

@stated(Grade.FIRM)
def test_nothing_measured(): return ()

@stated(Grade.FIRM)
def test_takes_fixtures(tmp_path): return len(str(tmp_path)) * 0
"""


def bounded(at_least: float = -math.inf, at_most: float = math.inf) -> Claim:
    return Claim(
        method="m",
        paper="p",
        says="s",
        measures="x",
        grade=Grade.HARD,
        at_least=at_least,
        at_most=at_most,
    )


def test_every_number_must_be_within_the_bound() -> None:
    claim = bounded(at_least=1, at_most=2)
    assert claim.holds([1, 1.5, 2])
    assert not claim.holds([1.5, 2.1])
    assert not claim.holds([0.9, 1.5])
    assert not claim.holds([float("nan")])
    assert not claim.holds([])


def test_bounds_read_as_words() -> None:
    assert bounded(at_most=0.65).bound == "at most 0.65"
    assert bounded(at_least=0.999).bound == "at least 0.999"
    assert bounded(at_least=1.5, at_most=2.2).bound == "1.5 to 2.2"


@pytest.mark.parametrize("bounds", [(), (2, 1), (math.nan, 1)])
def test_claims_without_a_bound_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="no bound, or an empty one"):
        bounded(*bounds)


def test_grades_decide_the_outcome_and_every_finding_is_written(tmp_path: Path) -> None:
    (tmp_path / "test_claims.py").write_text(CLAIMS)
    out = tmp_path / "build" / "claims.json"
    options = ["-p", "tests.claims.conftest", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--claims-out={out}", str(tmp_path), "-rA"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "2 failed, 2 passed, 1 skipped, 1 xfailed" in ran.stdout
    assert "measured (0.5, 1.5), bound at most 1" in ran.stdout
    states = {
        each["test"].rpartition("_")[2]: each["state"] for each in json.loads(out.read_text())
    }
    assert states == {
        "holds": "holds",
        "breaks": "not reproduced",
        "reproduced": "not reproduced",
        "hardware": "needs hardware",
        "measured": "not reproduced",
        "fixtures": "holds",
    }
