"""What is committed: every method has a claim, and the record is that of the claims as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from blockwright import registry
from blockwright.cli.claims import STATES, read_ledger, together
from tests.claims.ledger import Claim, Grade, State
from tests.claims.record import (
    JSON_FILE,
    PAGE,
    Row,
    as_json,
    in_order,
    page,
    read,
    stated_claims,
    statement,
)

ROOT = Path(__file__).resolve().parents[2]
REGISTERED = [*registry.format_stems(), *registry.method_names()]
MEASURE = "run `make claims` and commit docs/claims.md and src/blockwright/claims.json"


@cache
def stated() -> dict[str, Claim]:
    return stated_claims()


def recorded() -> list[Row]:
    rows: list[Row] = read(ROOT / JSON_FILE)["claims"]
    return rows


@pytest.mark.parametrize("name", REGISTERED)
def test_everything_registered_has_a_claim(name: str) -> None:
    assert name in {claim.method for claim in stated().values()}, f"tests/claims has none on {name}"


def test_the_record_states_the_claims_as_they_are() -> None:
    rows = in_order(statement(claim, test) for test, claim in stated().items())
    kept = [{key: row[key] for key in rows[0]} for row in recorded()]
    assert kept == rows, MEASURE


def test_the_page_is_that_of_the_record_and_names_every_test() -> None:
    data = read(ROOT / JSON_FILE)
    assert (ROOT / JSON_FILE).read_text(encoding="utf-8") == as_json(data), MEASURE
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert text == page(data), MEASURE
    assert {test for test in stated() if f"`{test.partition('::')[2]}`" not in text} == set()


def test_what_breaks_the_build_holds_and_soft_claims_are_dated() -> None:
    for row in recorded():
        if row["grade"] in (Grade.HARD, Grade.FIRM):
            assert row["state"] == State.HOLDS, row["test"]
            assert "measured_on" not in row
        if row["grade"] == Grade.SOFT and row["state"] != State.NOT_MEASURED:
            assert row["measured_on"]["date"]


def test_methods_are_listed_with_what_is_recorded() -> None:
    ledger = read_ledger()
    assert set(REGISTERED) <= set(ledger)
    assert {claim.state for claim in ledger.values()} <= set(STATES)
    assert "rounding to nearest" in ledger["gptq"].text


def test_one_state_stands_for_several_claims() -> None:
    assert together(["holds", "not reproduced"]) == "not reproduced"
    assert together(["needs hardware", "holds", "not measured"]) == "holds"
    assert together(["not measured", "needs hardware"]) == "needs hardware"
