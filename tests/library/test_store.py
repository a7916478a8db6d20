"""Entries are whole or absent; damage is noticed; one builder at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockwright.errors import LibraryError, OutputError
from blockwright.library import Library, variant_key
from blockwright.types import Option, VariantRecord
from tests.library.problems import problem_of

TENSORS = {"weight": torch.arange(6, dtype=torch.uint8), "scale": torch.ones(2).bfloat16()}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def stored(library: Library, number: int = 0) -> str:
    key = variant_key({"number": number})
    record = VariantRecord(key=key, site="a", candidate="int4-g32:rtn", stored_bytes=10, error=0.5)
    library.store(record, TENSORS)
    return key


def tensor_file(library: Library, key: str) -> Path:
    return library.folder / "entries" / key[:2] / key / "tensors.safetensors"


def test_what_was_stored_comes_back(library: Library) -> None:
    key = stored(library)
    record = library.lookup(key)
    assert record is not None
    assert record.error == 0.5
    for name, tensor in library.tensors(key).items():
        assert torch.equal(tensor, TENSORS[name])


def test_key_depends_on_every_input_and_on_no_order() -> None:
    assert variant_key({"a": 1, "b": 2}) == variant_key({"b": 2, "a": 1})
    assert variant_key({"a": 1}) != variant_key({"a": 2})


def test_same_entry_same_bytes(library: Library, tmp_path: Path) -> None:
    other = Library(tmp_path / "other")
    key = stored(library)
    stored(other)
    assert tensor_file(library, key).read_bytes() == tensor_file(other, key).read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "missing", "altered", "record"])
def test_damaged_entries_are_noticed_and_absent_afterwards(library: Library, damage: str) -> None:
    key = stored(library)
    path = tensor_file(library, key)
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.with_name("entry.json").write_text("{", encoding="utf-8")
    assert list(library.verify()) == [key]
    with pytest.raises(LibraryError):
        library.tensors(key)
    assert library.lookup(key) is None


def test_an_unfinished_entry_is_absent(library: Library) -> None:
    key = stored(library)
    tensor_file(library, key).with_name("entry.json").unlink()
    assert library.lookup(key) is None


def test_unavailable_variants_keep_their_reason(library: Library) -> None:
    record = VariantRecord(key="ab" * 20, site="a", candidate="c", unavailable="no tokens")
    library.store(record, {})
    found = library.lookup(record.key)
    assert found is not None
    assert not found.available
    assert library.verify() == {}


def test_another_process_building_the_same_entry_is_refused(library: Library) -> None:
    code = (
        "import sys; from pathlib import Path; from blockwright.library import Library\n"
        "try:\n"
        "    with Library(Path(sys.argv[1])).building('k'): pass\n"
        "except Exception as error: sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(library.folder)]
    with library.building("k"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is building the same entry k" in done.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_problems_come_back_newest_first(library: Library) -> None:
    option = Option(
        site="a", candidate="keep", weights=4, stored_bytes=8, loss=0.0, contains=("b",)
    )
    problem = problem_of(option)
    library.write_problem(problem)
    assert library.problems() == [problem]


def test_gc_keeps_what_problems_use(library: Library) -> None:
    kept, dropped = stored(library, 1), stored(library, 2)
    option = Option(site="a", candidate="int4", weights=4, stored_bytes=8, loss=0.0, key=kept)
    library.write_problem(problem_of(option))
    library.work_folder("x")
    assert library.gc()["entries"] == 1
    assert library.lookup(kept) is not None
    assert library.lookup(dropped) is None
    assert not (library.folder / "work").exists()


def test_results_are_kept(library: Library) -> None:
    library.store_result("r", {"kl": 0.5})
    assert library.result("r") == {"kl": 0.5}
    assert library.result("absent") is None


def test_a_newer_layout_or_a_strange_folder_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "library.json").write_text(json.dumps({"version": 99}), encoding="utf-8")
    with pytest.raises(LibraryError, match="99"):
        Library(newer)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LibraryError, match="no library"):
        Library(strange)


def test_a_write_that_fails_is_one_line(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        stored(library)
    assert "\n" not in str(caught.value)
    assert not list(library.folder.rglob("*.partial"))


def test_looking_up_imports_no_torch(library: Library) -> None:
    stored(library)
    code = (
        "import sys; from pathlib import Path; from blockwright.library import Library;"
        "Library(Path(sys.argv[1])).ls(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(library.folder)], check=False)
    assert done.returncode == 0
