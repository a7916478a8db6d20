"""Profile files: read back equal, hashed, and refused when altered or of another version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright.errors import ProfileError
from blockwright.types import PROFILE_VERSION, Profile, Workload

PROFILE = Profile(
    machine={"processor": "a", "threads": 2},
    model="m",
    dtype="bfloat16",
    workload=Workload(context=64),
    outside_ns=7,
    original_extra_ns=4,
    blocks_ns={"layers.0": 5, "layers.1": 6},
    work_ns={"linear 8x4 keep": 30, "linear 8x4 int4": 10, "head 9x4 keep": 50},
    untimed={"linear 8x4 int3": "no kernel"},
)


def test_a_profile_file_reads_back_equal(tmp_path: Path) -> None:
    PROFILE.write(tmp_path / "deep" / "p.json")
    found = Profile.read(tmp_path / "deep" / "p.json")
    assert found == PROFILE
    assert found.digest == PROFILE.digest
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep" / "p.json"]


def test_the_digest_tells_every_figure_apart() -> None:
    changed = [
        replace(PROFILE, outside_ns=8),
        replace(PROFILE, original_extra_ns=5),
        replace(PROFILE, workload=Workload(context=65)),
        replace(PROFILE, machine={"processor": "a", "threads": 1}),
        replace(PROFILE, work_ns={**PROFILE.work_ns, "linear 8x4 int4": 11}),
    ]
    assert len({profile.digest for profile in (PROFILE, *changed)}) == len(changed) + 1


def test_work_is_summed_and_unknown_where_a_part_is() -> None:
    assert PROFILE.time_of(("linear 8x4 keep", "head 9x4 keep")) == 80
    assert PROFILE.time_of(("linear 8x4 keep", "linear 8x4 int3")) is None
    assert PROFILE.time_of(()) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outside_ns": 8}, "was altered"),
        ({"version": PROFILE_VERSION + 1}, "has version 3, this Blockwright reads 2"),
        ({"surprise": 1}, "unknown key .surprise."),
        ({"workload": {"phase": "sleep", "batch": 1, "context": 1}}, "phase: got .sleep., allowed"),
    ],
)
def test_a_file_that_is_not_as_written_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    PROFILE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProfileError, match=words) as caught:
        Profile.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [(None, "does not exist"), ("{", "no readable JSON"), ("[]", "JSON object")]
)
def test_what_is_no_profile_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProfileError, match=words):
        Profile.read(path)
