"""Killed at any moment, the next run resumes and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from blockwright import pipeline
from blockwright.errors import ModelError
from blockwright.types import FitRequest, Preset
from tests.conftest import ModelFolder
from tests.fits import all_files, folder_bytes, request, with_tokenizer, write_texts
from tests.pipeline.conftest import load_here
from tests.pipeline.writes import REMOVALS, WRITES, Writes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["blockwright.pipeline", "tests.pipeline.conftest"])
"""Processes begin with torch and transformers imported: a fit itself takes two seconds."""


def start(work: Path, out: str, library: str, moment: str = "", *, fresh: bool = False) -> Any:
    """A fit in a process group of its own.  ``fresh``: folders load in processes of their own."""
    process = CONTEXT.Process(target=run, args=(work, out, library, moment, fresh))
    process.start()
    return process


def run(work: Path, out: str, library: str, moment: str, fresh: bool) -> None:
    """What the process does."""
    os.setsid()
    with (work / "stderr").open("w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 2)
    patch = pytest.MonkeyPatch()
    if not fresh:
        load_here(patch)
    if moment == "before the proof":
        patch.setattr(pipeline, "prove", die)
    if moment == "after the proof":
        patch.setattr(os, "replace", partial(die_before, str(work / out), os.replace))
    asked = replace(
        request(work / "model", work, preset=Preset.BALANCED),
        out=work / out,
        library=work / library,
    )
    if moment.isdecimal():
        Writes(patch, die, (*WRITES, *REMOVALS)).stops_at = int(moment)
    if moment == "counted":
        (work / "count").write_text(str(count_changes(patch, asked)))
        return
    pipeline.fit(asked)


def count_changes(patch: pytest.MonkeyPatch, asked: FitRequest) -> int:
    """How often a fit changes the disk."""
    disk = Writes(patch, die, (*WRITES, *REMOVALS))
    pipeline.fit(asked)
    return disk.count


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(name: str, rename: Callable[[Any, Any], None], source: Any, target: Any) -> None:
    if os.fspath(target) == name:
        die()
    rename(source, target)


MOMENTS = ("before the proof", "after the proof")


def ended(process: Any, work: Path) -> None:
    """Wait for the end, which must be a good one."""
    process.join(timeout=300)
    assert process.exitcode == 0, (work / "stderr").read_text(encoding="utf-8")[-2000:]


def finish(work: Path, out: str, library: str, *, fresh: bool) -> float:
    """Seconds of an undisturbed run."""
    began = time.monotonic()
    ended(start(work, out, library, fresh=fresh), work)
    return time.monotonic() - began


def check_kills(work: Path, kills: int, *, fresh: bool) -> None:
    """Kill runs at seeded moments until it was done ``kills`` times; each ends with the bytes of an
    undisturbed one.
    """
    write_texts(work)
    finish(work, "first", "first-library", fresh=fresh)
    seconds = finish(work, "whole", "whole-library", fresh=fresh)
    draw = random.Random(7)
    killed = fits = 0
    while killed < kills:
        out, library = f"killed-{fits}", f"library-{fits}"
        process = start(work, out, library, fresh=fresh)
        killed += kill_after(process, draw.uniform(0.25, 0.95) * seconds, work)
        if killed == kills and not (work / out).exists():
            finish(work, out, library, fresh=fresh)
        if (work / out).exists():
            assert_same_files(work / "whole", work / out)
            fits += 1


def kill_after(process: Any, seconds: float, work: Path) -> int:
    """Kill a run if it has not ended by itself; how often it was killed."""
    process.join(timeout=seconds)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return 1
    ended(process, work)
    return 0


def assert_same_files(whole: Path, other: Path) -> None:
    """The same files with the same bytes; reports hold times."""
    assert {path.name for path in whole.iterdir()} == {path.name for path in other.iterdir()}
    assert folder_bytes(whole) == folder_bytes(other)


def test_three_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 3, fresh=False)


@pytest.mark.slow
def test_twenty_kills_change_no_byte(model_folder: ModelFolder, tmp_path: Path) -> None:
    with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    check_kills(tmp_path, 20, fresh=True)


@pytest.mark.slow
def test_a_kill_before_every_change_of_the_disk_loses_nothing_and_leaves_nothing(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    with_tokenizer(model_folder("llama", num_hidden_layers=1), tmp_path)
    write_texts(tmp_path)
    ended(start(tmp_path, "whole", "whole-library", "counted"), tmp_path)
    count = int((tmp_path / "count").read_text())
    libraries = all_files(tmp_path / "whole-library")
    places = {path.name for path in tmp_path.iterdir()}
    for moment in range(1, count + 1):
        process = start(tmp_path, "killed", "library", str(moment))
        process.join(timeout=300)
        if process.exitcode == -signal.SIGKILL and not (tmp_path / "killed").exists():
            finish(tmp_path, "killed", "library", fresh=False)
        where = f"killed before change {moment} of {count}"
        assert_same_files(tmp_path / "whole", tmp_path / "killed")
        assert all_files(tmp_path / "library") == libraries, where
        for name in ("killed", "library"):
            shutil.rmtree(tmp_path / name)
        assert {path.name for path in tmp_path.iterdir()} == places, where


def test_a_kill_between_assembly_and_name_is_resumed(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    whole = pipeline.fit(replace(request(model, tmp_path), out=tmp_path / "whole"))
    for moment in MOMENTS:
        process = start(tmp_path, "killed", "library", moment)
        process.join(timeout=300)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "stderr").read_text()[-2000:]
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
