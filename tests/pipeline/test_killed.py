"""Killed at any moment, the next run resumes and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ModelFolder
from tests.fits import with_tokenizer, write_texts

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
ROOT = Path(__file__).resolve().parents[2]
REPORTS = "blockwright-report."
"""Files that hold times."""


def start(work: Path, out: str, library: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(work), out, library]
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
    """Kill a run ``kills`` times at seeded moments, let it end, compare with an undisturbed one."""
    write_texts(work)
    seconds = finish(work, "whole", "whole-library")
    draw = random.Random(7)
    killed = 0
    for _ in range(kills):
        process = start(work, "killed", "killed-library")
        try:
            process.wait(timeout=draw.uniform(0.25, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if (work / "killed").exists():
            break
    assert killed > 0
    if not (work / "killed").exists():
        finish(work, "killed", "killed-library")
    for path in sorted((work / "whole").iterdir()):
        assert (work / "killed" / path.name).is_file()
        if path.name.startswith(REPORTS):
            continue
        assert path.read_bytes() == (work / "killed" / path.name).read_bytes(), path.name


def test_three_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 20)
