"""Runs claims: judges what a test returns against its claim's bound, and writes the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.claims.ledger import Claim, Finding, Grade, State
from tests.claims.record import Record

RECORD = pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soft", action="store_true", help="measure the statistical claims as well")
    parser.addoption(
        "--claims-record",
        type=Path,
        metavar="ROOT",
        help="write ROOT/docs/claims.md and ROOT/src/blockwright/claims.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORD] = Record()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what is stated; leave the soft claims out unless they are asked for."""
    record = config.stash[RECORD]
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    with_soft = config.getoption("--soft", default=False)
    for item in items:
        claim = claim_of(item)
        if claim is not None:
            record.state(claim, test_name(item))
        soft = claim is not None and claim.grade is Grade.SOFT
        (left_out if soft and not with_soft else kept).append(item)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call the test of a claim, record its finding, fail where the claim's grade asks for it."""
    claim = claim_of(pyfuncitem)
    if claim is None:
        return None
    finding = measure(pyfuncitem, claim)
    pyfuncitem.config.stash[RECORD].add(finding)
    if finding.state is State.NEEDS_HARDWARE:
        pytest.skip(finding.reason)
    if finding.state is State.NOT_REPRODUCED:
        text = f"{claim.method}: {claim.says}: measured {finding.measured}, bound {claim.bound}"
        (pytest.xfail if claim.grade is Grade.SOFT else pytest.fail)(text)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record where it was asked for, if everything that had to be measured was."""
    root: Path | None = session.config.getoption("--claims-record", default=None)
    if root is None:
        return
    missing = session.config.stash[RECORD].write(root, soft=session.config.getoption("--soft"))
    if missing:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
        print(f"\nclaims not recorded; not measured in this run: {', '.join(missing)}")


def measure(item: pytest.Function, claim: Claim) -> Finding:
    """What the test of a claim found; only claims on hardware may skip."""
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    try:
        measured: tuple[float, ...] = item.obj(**arguments)
    except pytest.skip.Exception as skipped:
        if claim.grade is not Grade.HARDWARE:
            pytest.fail(f"{claim.method}: a {claim.grade} claim must be measured: {skipped.msg}")
        reason = skipped.msg or "no reason given"
        return Finding(claim=claim, test=test_name(item), reason=reason)
    return Finding(claim=claim, test=test_name(item), measured=measured)


def claim_of(item: pytest.Item) -> Claim | None:
    marker = item.get_closest_marker("claim")
    return None if marker is None else marker.args[0]


def test_name(item: pytest.Item) -> str:
    """``test_file.py::test_name``, one name for all parameters of a test."""
    return f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
