"""Entries, problems and results: what is stored is found again, what is damaged is absent."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockwright.errors import LibraryError, OutputError
from blockwright.library import Library, documents, variant_key
from blockwright.types import Option, Problem, VariantRecord

KEY = variant_key({"source": "w", "candidate": "int4"})
FAILED = variant_key({"source": "w", "candidate": "int2"})
RECORD = VariantRecord(
    key=KEY,
    site="model.layers.0.q",
    candidate="int4-g64:gptq",
    stored_bytes=40,
    error=0.1,
    relative_error=1 / 3,
    tokens=7,
    seconds=0.5,
    format_spec={"format": "int", "bits": 4},
    inputs={"source": "w", "candidate": "int4"},
)
TENSORS = {"weight": torch.arange(32, dtype=torch.uint8), "scale": torch.tensor([0.5, 2.0]).half()}
PROBLEM = Problem(
    model="models/tiny",
    fingerprint="f1",
    statistics="s1",
    options=(
        Option(site="a", candidate="keep", weights=4, stored_bytes=8, loss=0.0),
        Option(site="a", candidate="int4", weights=4, stored_bytes=2, loss=0.1 + 0.2, key=KEY),
        Option(site="b", candidate="drop", weights=0, stored_bytes=0, loss=1e-300, contains=("a",)),
    ),
    linear_weights=4,
    fixed_bytes=1,
    original_bytes=9,
)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library(tmp_path / "library")
    with made.building(KEY):
        made.store(RECORD, TENSORS)
    return made


def entry(library: Library, key: str = KEY) -> Path:
    return library.folder / "entries" / key[:2] / key


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def test_what_is_stored_is_found_by_another_process_bit_for_bit(library: Library) -> None:
    again = Library(library.folder)
    assert again.lookup(KEY) == RECORD
    assert same(again.tensors(KEY), TENSORS)
    assert again.intact(KEY)
    assert again.ls() == [RECORD]
    assert again.verify() == {}
    assert again.lookup(FAILED) is None


def test_the_same_variant_has_the_same_bytes_whatever_the_order_of_its_tensors(
    library: Library, tmp_path: Path
) -> None:
    other = Library(tmp_path / "other")
    other.store(RECORD, dict(reversed(TENSORS.items())))
    for name in ("entry.json", "tensors.safetensors"):
        assert (entry(other) / name).read_bytes() == (entry(library) / name).read_bytes()


def test_a_failure_is_stored_too_without_tensors(library: Library) -> None:
    record = replace(RECORD, key=FAILED, unavailable="no calibration token reached it")
    library.store(record, {})
    assert library.lookup(FAILED) == record
    assert library.tensors(FAILED) == {}
    assert library.verify() == {}


def test_a_key_depends_on_every_input_and_not_on_their_order() -> None:
    inputs = {"a": 1, "b": {"c": [1.5, "x"], "d": None}}
    assert variant_key({"b": {"d": None, "c": [1.5, "x"]}, "a": 1}) == variant_key(inputs)
    others = [{**inputs, "a": 2}, {**inputs, "b": {}}, {**inputs, "e": 0}, {**inputs, "a": "1"}]
    assert len({variant_key(item) for item in [inputs, *others]}) == 5
    with pytest.raises(ValueError, match="JSON"):
        variant_key({"a": math.nan})


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "longer"])
@pytest.mark.parametrize("name", ["entry.json", "tensors.safetensors"])
def test_an_entry_of_another_size_is_absent_and_removed(
    library: Library, damage: str, name: str
) -> None:
    path = entry(library) / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "short": data[:-3], "longer": data + b"x"}[damage])
    assert library.lookup(KEY) is None
    if (name, damage) != ("entry.json", "missing"):
        assert KEY in library.repairs[0]
        assert not entry(library).exists()
    library.store(RECORD, TENSORS)
    assert library.intact(KEY)


def test_every_altered_byte_of_a_record_makes_the_entry_absent(library: Library) -> None:
    path = entry(library) / "entry.json"
    data = path.read_bytes()
    spaces = {place for place, byte in enumerate(data) if chr(byte).isspace()}
    for place in set(range(0, len(data), 7)) - spaces:
        path.write_bytes(flipped(data, place))
        assert library.lookup(KEY) is None, place
        library.store(RECORD, TENSORS)
        assert path.read_bytes() == data


def test_an_altered_tensor_is_noticed_when_it_is_read(library: Library) -> None:
    path = entry(library) / "tensors.safetensors"
    for place in (0, 9, path.stat().st_size - 1):
        path.write_bytes(flipped(path.read_bytes(), place))
        assert library.lookup(KEY) == RECORD
        assert list(library.verify()) == [KEY]
        with pytest.raises(LibraryError, match=r"altered tensors.*was removed"):
            library.tensors(KEY)
        assert library.lookup(KEY) is None
        library.store(RECORD, TENSORS)
    path.write_bytes(flipped(path.read_bytes(), 9))
    assert not library.intact(KEY)
    assert library.lookup(KEY) is None


def test_an_entry_under_another_key_is_absent(library: Library) -> None:
    entry(library, FAILED).parent.mkdir(parents=True, exist_ok=True)
    entry(library).rename(entry(library, FAILED))
    assert library.lookup(FAILED) is None
    assert KEY in library.repairs[0]


def test_problems_and_results_come_back_equal(library: Library) -> None:
    library.write_problem(PROBLEM)
    figures = {"perplexity": 1 / 3, "tokens": 12, "names": ["a"], "none": None}
    library.store_result("r1", figures)
    again = Library(library.folder)
    assert again.problems() == [PROBLEM]
    assert again.result("r1") == figures
    assert again.result("r2") is None


def test_a_damaged_problem_or_result_is_removed_and_the_others_stay(library: Library) -> None:
    library.write_problem(PROBLEM)
    library.write_problem(replace(PROBLEM, statistics="s2"))
    library.store_result("r1", {"loss": 1.25})
    for name in ("problems/f1-s1.json", "results/r1.json"):
        path = library.folder / name
        path.write_bytes(path.read_bytes().replace(b"1", b"7", 1))
    assert library.problems() == [replace(PROBLEM, statistics="s2")]
    assert library.result("r1") is None
    assert len(library.repairs) == 2
    assert not (library.folder / "results" / "r1.json").exists()


def test_a_problem_of_a_newer_version_is_left_alone_and_named(library: Library) -> None:
    path = library.folder / "problems" / "f1-s1.json"
    documents.write_document(path, {"version": 99})
    with pytest.raises(LibraryError, match="problem version 99, this Blockwright reads 1"):
        library.problems()
    assert path.exists()


def test_a_newer_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    newer, foreign, broken = (tmp_path / name for name in ("newer", "foreign", "broken"))
    for folder in (newer, foreign, broken):
        folder.mkdir()
    (newer / "library.json").write_text('{"version": 2}')
    (broken / "library.json").write_text("{")
    (foreign / "thesis.txt").write_text("text")
    with pytest.raises(LibraryError, match="layout version 2, this Blockwright reads 1"):
        Library(newer)
    with pytest.raises(LibraryError, match="cannot be read"):
        Library(broken)
    with pytest.raises(LibraryError, match="not empty and no library"):
        Library(foreign)


def test_names_cannot_lead_out_of_the_library(library: Library) -> None:
    for name in ("../x", "/etc/x", "", ".", "a/b"):
        with pytest.raises(LibraryError, match="no name"):
            library.work_folder(name)
        with pytest.raises(LibraryError, match="no name"):
            library.store_result(name, {})


def test_what_is_no_json_is_refused_before_anything_is_written(library: Library) -> None:
    with pytest.raises(LibraryError, match="would not be JSON"):
        library.store_result("r1", {"loss": math.inf})
    assert not (library.folder / "results").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    record = replace(RECORD, key=FAILED)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        writes: list[Callable[[], None]] = [
            lambda: library.store(record, TENSORS),
            lambda: library.write_problem(PROBLEM),
            lambda: library.store_result("r1", {}),
        ]
        for write in writes:
            with pytest.raises(OutputError, match=r"No space left.*same command resumes") as caught:
                write()
            assert "\n" not in str(caught.value)
    assert list(library.folder.rglob("*.partial")) == []
    assert library.lookup(FAILED) is None
    assert library.lookup(KEY) == RECORD


def test_folders_that_cannot_be_made_are_one_line(library: Library) -> None:
    (library.folder / "locks").rmdir()
    for name in ("work", "locks", "results"):
        (library.folder / name).write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        library.work_folder("w")
    with pytest.raises(OutputError, match="cannot write"), library.building(FAILED):
        pass
    with pytest.raises(OutputError, match="cannot write"):
        library.store_result("r1", {})


def test_gc_removes_what_no_problem_can_use(library: Library) -> None:
    forgotten = replace(RECORD, key=FAILED)
    failed = replace(RECORD, key="aa11", unavailable="reason")
    refined = replace(RECORD, key="bb22", inputs={"statistics": "s/refined-in/p"})
    for record in (forgotten, failed, refined):
        library.store(record, TENSORS)
    library.write_problem(PROBLEM)
    (library.work_folder("w") / "hidden.bin").write_bytes(b"x" * 1000)
    (library.folder / "results").mkdir()
    (library.folder / "results" / "r.json.1-2.partial").write_bytes(b"x" * 500)
    counted = library.gc()
    assert counted["entries"] == 1
    assert counted["bytes"] > 1500
    assert {record.key for record in library.ls()} == {KEY, "aa11", "bb22"}
    assert library.gc() == {"entries": 0, "bytes": 0}
    assert not (library.folder / "work").exists()


def test_looking_things_up_needs_no_torch(library: Library) -> None:
    library.write_problem(PROBLEM)
    script = (
        "import sys, pathlib\n"
        "from blockwright.library import Library\n"
        f"library = Library(pathlib.Path({str(library.folder)!r}))\n"
        f"assert library.lookup({KEY!r}) and library.ls() and library.problems()\n"
        "assert not library.verify()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_documents_are_readable_and_sorted(library: Library) -> None:
    text = (entry(library) / "entry.json").read_text()
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert data["record"]["site"] == "model.layers.0.q"
    assert text.endswith("}\n")
