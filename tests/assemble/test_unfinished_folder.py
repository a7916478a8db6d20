"""A folder has its name when it is whole, and leaves nothing behind when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockwright.assemble import unfinished_folder
from blockwright.errors import OutputError


def test_the_name_comes_last(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with unfinished_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert not folder.exists()


def test_an_empty_folder_and_what_a_killed_run_left_are_replaced(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / "out.partial"
    out.mkdir()
    left.mkdir()
    (left / "config.json").write_text("{")
    with unfinished_folder(out) as folder:
        assert folder == left
        assert not any(folder.iterdir())
        (folder / "a").write_text("1")
    assert [path.name for path in out.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_and_is_passed_on(
    error: type[BaseException], tmp_path: Path
) -> None:
    def fail() -> None:
        with unfinished_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert not any(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with pytest.raises(OutputError, match="is not empty"), unfinished_folder(tmp_path):
        pass
    assert (tmp_path / "a").read_text() == "1"


def test_a_rename_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(OutputError, match=r"cannot write .*out: Permission denied; free space"),
        unfinished_folder(tmp_path / "out"),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_what_stands_under_the_working_name_is_not_removed_unless_ours(tmp_path: Path) -> None:
    other = tmp_path / "out.partial"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="not empty"), unfinished_folder(tmp_path / "out"):
        pass
    assert (other / "thesis.txt").is_file()


def test_a_folder_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def taken() -> None:
        with unfinished_folder(out):
            out.mkdir()
            (out / "file").write_text("theirs", encoding="utf-8")

    with pytest.raises(OutputError, match="not empty"):
        taken()
    assert (out / "file").read_text(encoding="utf-8") == "theirs"


@pytest.mark.parametrize(
    "left", [("config.json.partial",), ("config.json",), ("config.json", "model.safetensors")]
)
def test_what_a_killed_run_left_is_replaced(tmp_path: Path, left: tuple[str, ...]) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name in left:
        (partial / name).write_text("x")
    with unfinished_folder(tmp_path / "out") as folder:
        assert not any(folder.iterdir())


def test_a_removal_that_is_cut_off_leaves_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name in ("a.json", "config.json", "z.json"):
        (partial / name).write_text("x")
    removed: list[str] = []
    unlink = Path.unlink

    def cut_off(path: Path) -> None:
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(path.name)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", cut_off)
    with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path / "out"):
        pass
    assert sorted(removed) == ["a.json", "z.json"]
    assert [path.name for path in partial.iterdir()] == ["config.json"]
