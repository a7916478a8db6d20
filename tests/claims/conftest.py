"""Runs claims: judges what a test returns against the bound of its claim, and records it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.claims.ledger import Claim, Finding, Grade, State

FINDINGS = pytest.StashKey[list[Finding]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claims-out", type=Path, help="write the findings of all claims as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call the test of a claim, record its finding, fail where the claim's grade asks for it."""
    marker = pyfuncitem.get_closest_marker("claim")
    if marker is None:
        return None
    finding = _measure(pyfuncitem, marker.args[0])
    pyfuncitem.config.stash.setdefault(FINDINGS, []).append(finding)
    claim = finding.claim
    if finding.state is State.NEEDS_HARDWARE:
        pytest.skip(finding.reason)
    if finding.state is State.NOT_REPRODUCED:
        text = f"{claim.method}: {claim.says}: measured {finding.measured}, bound {claim.bound}"
        (pytest.xfail if claim.grade is Grade.SOFT else pytest.fail)(text)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the findings where they were asked for."""
    out: Path | None = session.config.getoption("--claims-out", default=None)
    if out is not None:
        findings = session.config.stash.get(FINDINGS, [])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps([each.to_json() for each in findings], indent=1) + "\n")


def _measure(item: pytest.Function, claim: Claim) -> Finding:
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    began = time.monotonic()
    try:
        measured: tuple[float, ...] = item.obj(**arguments)
    except pytest.skip.Exception as skipped:
        if claim.grade is not Grade.HARDWARE:
            raise
        reason = skipped.msg or "no reason given"
        return Finding(claim=claim, test=item.nodeid, state=State.NEEDS_HARDWARE, reason=reason)
    return Finding(
        claim=claim,
        test=item.nodeid,
        state=State.HOLDS if claim.holds(measured) else State.NOT_REPRODUCED,
        measured=measured,
        seconds=time.monotonic() - began,
    )
