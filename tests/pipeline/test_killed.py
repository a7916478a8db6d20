"""Killed at any moment, the next run resumes and ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.errors import ModelError
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer, write_texts

RUN = """
import sys
from pathlib import Path
from blockwright import pipeline
from tests.fits import request
import dataclasses
work = Path(sys.argv[1])
asked = request(work / "model", work)
pipeline.fit(dataclasses.replace(asked, out=work / sys.argv[2], library=work / sys.argv[3]))
"""
KILLED_AT = """
import os, signal
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def die_before_the_name(source, target, rename=os.replace):
    die() if os.fspath(target) == sys.argv[1] + "/" + sys.argv[2] else rename(source, target)
"""
MOMENTS = {
    "before the proof": KILLED_AT + "pipeline.prove = die",
    "after the proof": KILLED_AT + "os.replace = die_before_the_name",
}
"""Code put before the fit of ``RUN``."""
ROOT = Path(__file__).resolve().parents[2]


def start(work: Path, out: str, library: str, before: str = "") -> subprocess.Popen[bytes]:
    code = RUN.replace("work = ", before + "\nwork = ")
    command = [sys.executable, "-c", code, str(work), out, library]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def finish(work: Path, out: str, library: str) -> float:
    """Seconds of an undisturbed run."""
    began = time.monotonic()
    process = start(work, out, library)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]
    return time.monotonic() - began


def check_kills(work: Path, kills: int) -> None:
    """Kill runs at seeded moments until it was done ``kills`` times; each ends with the bytes of an
    undisturbed one.
    """
    write_texts(work)
    seconds = finish(work, "whole", "whole-library")
    draw = random.Random(7)
    killed = fits = 0
    while killed < kills:
        out, library = f"killed-{fits}", f"library-{fits}"
        killed += run_killed(work, out, library, draw.uniform(0.25, 0.95) * seconds)
        if killed == kills and not (work / out).exists():
            finish(work, out, library)
        if (work / out).exists():
            assert_same_files(work / "whole", work / out)
            fits += 1


def run_killed(work: Path, out: str, library: str, after_seconds: float) -> int:
    """Run, and kill it if it has not ended by itself; how often it was killed."""
    process = start(work, out, library)
    try:
        process.wait(timeout=after_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return 1
    finally:
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    return 0


def assert_same_files(whole: Path, other: Path) -> None:
    """The same files with the same bytes; reports hold times."""
    assert {path.name for path in whole.iterdir()} == {path.name for path in other.iterdir()}
    assert folder_bytes(whole) == folder_bytes(other)


def test_three_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 20)


def test_a_kill_between_assembly_and_name_is_resumed(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    whole = pipeline.fit(replace(request(model, tmp_path), out=tmp_path / "whole"))
    for moment, code in MOMENTS.items():
        process = start(tmp_path, "killed", "library", code)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
        assert (tmp_path / "killed.partial").is_dir(), moment
        assert not (tmp_path / "killed").exists(), moment
        resumed = pipeline.fit(replace(request(model, tmp_path), out=tmp_path / "killed"))
        assert not (tmp_path / "killed.partial").exists()
        assert_same_files(whole.out, resumed.out)
        shutil.rmtree(tmp_path / "killed")


def test_a_proof_that_fails_leaves_nothing(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)

    def refuse(*_: object) -> None:
        raise ModelError("it does not load")

    monkeypatch.setattr(pipeline, "prove", refuse)
    with pytest.raises(ModelError, match="it does not load"):
        pipeline.fit(request(model, tmp_path))
    assert not list(tmp_path.glob("out*"))
