"""Several processes at one library, and processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright.errors import LibraryError
from blockwright.library import Library, locks
from blockwright.library.locks import Shared
from blockwright.types import Option, VariantRecord
from tests.library.problems import problem_of

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

KEY = "ab" * 20
RECORD = VariantRecord(key=KEY, site="s", candidate="int4", stored_bytes=8)
TENSORS = {"weight": torch.arange(4096)}


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a child process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def wait(child: int) -> None:
    os.waitpid(child, 0)


class Held:
    """A child that does something and then waits until it is killed."""

    def __init__(self, enter: Callable[[], Any]) -> None:
        self._ready, ready = os.pipe()
        self.pid = forked(lambda: self._run(enter, ready))
        os.close(ready)
        os.read(self._ready, 1)

    def _run(self, enter: Callable[[], Any], ready: int) -> None:
        with enter():
            os.write(ready, b"x")
            time.sleep(60)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait(self.pid)
        os.close(self._ready)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "library"


def test_one_builder_per_entry_and_a_dead_one_does_not_block(folder: Path) -> None:
    library = Library(folder)
    other = Held(lambda: Library(folder).building(KEY))
    try:
        with (
            pytest.raises(
                LibraryError, match=f"process {other.pid} is building the same entry {KEY}; wait"
            ) as caught,
            library.building(KEY),
        ):
            pass
        assert "\n" not in str(caught.value)
        with library.building("cd" * 20):
            pass
    finally:
        other.kill()
    with library.building(KEY):
        library.store(RECORD, TENSORS)
    assert library.intact(KEY)
    assert list((folder / "locks").iterdir()) == []


def test_an_entry_that_another_process_builds_is_not_removed_under_it(folder: Path) -> None:
    library = Library(folder)
    library.store(RECORD, TENSORS)
    tensors = next(folder.rglob("tensors.safetensors"))
    tensors.write_bytes(b"half")
    other = Held(lambda: Library(folder).building(KEY))
    try:
        assert library.lookup(KEY) is None
        assert tensors.exists()
    finally:
        other.kill()
    assert library.lookup(KEY) is None
    assert not tensors.exists()


def test_locks_of_one_entry_never_overlap(folder: Path) -> None:
    """Many processes take and drop one lock; a counter that only its holder writes stays exact."""
    library = Library(folder)
    counter = folder / "counter"
    counter.write_text("0")

    def count() -> None:
        done = 0
        while done < 40:
            try:
                with library.building(KEY):
                    counter.write_text(str(int(counter.read_text()) + 1))
                    done += 1
            except LibraryError:
                time.sleep(0.0005)

    for child in [forked(count) for _ in range(3)]:
        wait(child)
    assert counter.read_text() == "120"


def test_a_lock_file_that_its_last_holder_removed_is_not_the_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened just before its holder let go and removed it: locking that file excludes nobody."""
    library = Library(folder)
    taken = locks._flock
    seen: list[Path] = []

    def after_it_was_removed(descriptor: int, kind: int, path: Path) -> None:
        seen.append(path)
        if len(seen) == 1:
            path.unlink()
        taken(descriptor, kind, path)

    monkeypatch.setattr(locks, "_flock", after_it_was_removed)
    with library.building(KEY):
        assert (folder / "locks" / KEY).exists()
        with pytest.raises(LibraryError, match="same entry"), library.building(KEY):
            pass
    assert len(seen) == 3


def test_gc_refuses_while_another_process_uses_the_library(folder: Path) -> None:
    library = Library(folder)
    library.store(RECORD, TENSORS)

    class Using:
        def __enter__(self) -> None:
            # A process of its own would open the folder anew; a forked one must forget the
            # parent's share first.
            Shared._open.clear()
            self.library = Library(folder)

        def __exit__(self, *_: object) -> None: ...

    other = Held(Using)
    try:
        with pytest.raises(LibraryError, match="in use by another process"):
            library.gc()
        assert library.intact(KEY)
    finally:
        other.kill()
    assert library.gc()["entries"] == 0


def test_a_library_that_may_not_be_written_can_be_planned_from(folder: Path) -> None:
    option = Option(site="a", candidate="keep", weights=1, stored_bytes=2, loss=0.0)
    problem = problem_of(option)
    Library(folder).write_problem(problem)
    for path in (folder / "library.json", *folder.rglob("*.json")):
        path.chmod(0o444)
    for path in (folder, folder / "problems"):
        path.chmod(0o555)
    try:
        assert Library(folder).problems() == [problem]
    finally:
        for path in (folder, folder / "problems"):
            path.chmod(0o755)


def whole_or_absent(folder: Path, keys: list[str]) -> int:
    """Entries that are there; each must be whole, and the others buildable."""
    library = Library(folder)
    there = [key for key in keys if library.lookup(key) is not None]
    assert all(library.intact(key) for key in there)
    assert set(library.verify()) <= set(keys) - set(there)
    for key in keys:
        with library.building(key):
            library.store(replace(RECORD, key=key), TENSORS)
            assert library.intact(key)
    assert list(folder.rglob("*.partial")) == []
    return len(there)


@pytest.mark.parametrize("step", range(8))
def test_a_process_that_dies_at_any_step_of_a_store_leaves_a_whole_entry_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Die before the n-th call that changes the disk: exhaustive over the steps of one store."""
    library = Library(folder)
    calls = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    def store() -> None:
        monkeypatch.setattr(os, "fsync", dying(os.fsync))
        monkeypatch.setattr(Path, "replace", dying(Path.replace))
        monkeypatch.setattr(Path, "mkdir", dying(Path.mkdir))
        with library.building(KEY):
            library.store(RECORD, TENSORS)

    wait(forked(store))
    whole_or_absent(folder, [KEY])


def test_a_process_killed_at_random_moments_leaves_whole_entries_only(folder: Path) -> None:
    draw = random.Random(0)
    keys = [f"{index:02x}" * 20 for index in range(60)]

    def build() -> None:
        library = Library(folder)
        for key in keys:
            with library.building(key):
                if library.lookup(key) is None:
                    library.store(replace(RECORD, key=key), TENSORS)

    Library(folder)
    for _ in range(6):
        child = forked(build)
        time.sleep(draw.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        wait(child)
        library = Library(folder)
        there = [key for key in keys if library.lookup(key) is not None]
        assert all(library.intact(key) for key in there)
    assert whole_or_absent(folder, keys) >= 0
