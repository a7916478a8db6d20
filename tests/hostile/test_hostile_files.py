"""Whatever stands in a file: it is taken, or refused in one line; nothing else is written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from blockwright.errors import UserError
from tests.hostile.targets import TARGETS, Target
from tests.hostile.watching import nothing_else_happens

FEW, MANY = 34, 1112
"""Cases of each of nine kinds of file: over 300 in all, and over 10,000."""


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_taken_or_refused_in_one_line(
    name: str, cases: int, tmp_path: Path
) -> None:
    target = TARGETS[name](tmp_path / "files")

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.damaged())
    def read(damaged: Any) -> None:
        with nothing_else_happens(tmp_path):
            attempt(target, damaged)

    read()


def attempt(target: Target, damaged: Any) -> None:
    """Fails on anything but success and one clear line."""
    try:
        target.attempt(damaged)
    except UserError as error:
        text = str(error)
        assert text.strip(), "an empty message"
        assert text.isprintable(), f"more than one line, or what a terminal obeys: {text!r}"


def test_what_is_written_elsewhere_and_what_is_unpickled_is_noticed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    with nothing_else_happens(inside):
        (inside / "file").write_bytes(pickle.dumps(Path))
    with pytest.raises(AssertionError, match="outside"), nothing_else_happens(inside):
        outside.write_text("x")
    with pytest.raises(AssertionError, match="outside"), nothing_else_happens(inside):
        os.replace(inside / "file", outside)
    with pytest.raises(AssertionError, match="pickle"), nothing_else_happens(inside):
        pickle.loads(pickle.dumps(Path))
