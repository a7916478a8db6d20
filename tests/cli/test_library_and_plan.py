"""``library`` and ``plan`` work from a folder, without the model and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockwright.library import Library
from blockwright.types import Option, Plan, Problem, VariantRecord
from tests.cli.conftest import CommandLine

BITS = {"keep": 16, "int8": 8, "int4-g64:gptq": 4, "int2-g64:gptq": 2}
WEIGHTS = 64 * 64


def make_problem(model: str = "models/first", statistics: str = "5e5e") -> Problem:
    """Four linears; the loss of a candidate grows with its site's number."""
    options = tuple(
        Option(
            site=f"layers.{index}.up_proj",
            candidate=candidate,
            weights=WEIGHTS,
            stored_bytes=WEIGHTS * bits // 8,
            loss=0.0 if bits == 16 else (index + 1) * 4.0**-bits,
            key="" if candidate == "keep" else f"{index}{bits}" * 10,
        )
        for index in range(4)
        for candidate, bits in BITS.items()
    )
    return Problem(
        model=model,
        fingerprint=model.encode().hex(),
        statistics=statistics,
        options=options,
        linear_weights=4 * WEIGHTS,
        fixed_bytes=1000,
        original_bytes=4 * WEIGHTS * 2 + 1000,
    )


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    made = Library(folder)
    made.write_problem(make_problem())
    for key in ("02", "18"):
        record = VariantRecord(
            key=key * 10, site="layers.0.up_proj", candidate="int8", stored_bytes=4096
        )
        made.store(record, {"weight": torch.ones(4)})
    return folder


def test_plan_solves_a_budget_and_writes_a_plan_file(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plans" / "p.json"
    outcome = command_line("plan", library, "--bits", "4", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    plan = Plan.read(out)
    assert plan.bits_per_weight <= 4
    assert {choice.candidate for choice in plan.choices.values()} <= set(BITS)
    assert json.loads(outcome.out) == plan.to_json() | {"plan_path": str(out)}
    assert (
        "models/first: 4.000 bits per weight"
        in command_line("plan", library, "--bits", "4", "--out", out).out
    )


def test_plan_takes_under_five_seconds_and_no_torch(library: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom blockwright.cli import run\n"
        f"code = run(['plan', {str(library)!r}, '--bits', '3', '--out', {str(tmp_path / 'p')!r}])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert sum(__import__('os').times()[:2]) < 5\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_newest_calibration_of_a_model_is_taken(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    for path in (library / "problems").iterdir():
        os.utime(path, (1, 1))
    Library(library).write_problem(make_problem(statistics="6f6f"))
    command_line("plan", library, "--bits", "4", "--out", tmp_path / "new")
    command_line("plan", library, "--bits", "4", "--out", tmp_path / "old", "--problem", "5e")
    assert Plan.read(tmp_path / "new").statistics == "6f6f"
    assert Plan.read(tmp_path / "old").statistics == "5e5e"


def test_several_models_must_be_told_apart(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    Library(library).write_problem(make_problem("models/second"))
    line = ("plan", library, "--bits", "4", "--out", tmp_path / "p")
    assert "holds problems of 2 models; choose with --problem" in command_line.refused(*line)
    assert "0 of them for --problem zz" in command_line.refused(*line, "--problem", "zz")
    assert not (tmp_path / "p").exists()
    assert command_line(*line, "--problem", "models/sec").code == 0
    assert Plan.read(tmp_path / "p").fingerprint == b"models/second".hex()


def test_a_budget_below_the_smallest_plan_is_refused(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    line = command_line.refused("plan", library, "--bits", "1", "--out", tmp_path / "p")
    assert "2" in line
    assert not (tmp_path / "p").exists()


def test_a_plan_that_cannot_be_written_is_refused(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    line = command_line.refused("plan", library, "--bits", "4", "--out", tmp_path / "file" / "p")
    assert "cannot be written" in line


@pytest.mark.parametrize("command", ["ls", "verify", "gc", "plan"])
def test_what_is_no_library_is_refused_and_left_alone(
    command_line: CommandLine, tmp_path: Path, command: str
) -> None:
    (tmp_path / "texts").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for folder, reason in (("texts", "is no library"), ("nowhere", "does not exist")):
        line = ["library", command, tmp_path / folder]
        if command == "plan":
            line = ["plan", tmp_path / folder, "--bits", "4", "--out", tmp_path / "p"]
        assert reason in command_line.refused(*line)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_library_without_a_problem_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    Library(tmp_path / "l")
    line = command_line.refused("plan", tmp_path / "l", "--bits", "4", "--out", tmp_path / "p")
    assert "holds no problem yet" in line


def test_ls_lists_the_variants(command_line: CommandLine, library: Path) -> None:
    assert "2 variants, 8.19 kB" in command_line("library", "ls", library).out
    records = json.loads(command_line("library", "ls", library, "--json").out)
    assert [record["candidate"] for record in records] == ["int8", "int8"]


def test_ls_says_of_each_model_what_kinds_of_variants_there_are(
    command_line: CommandLine, library: Path
) -> None:
    made = Library(library)
    first = made.ls()[0]
    refined = replace(first, key="fe" * 10, inputs={"statistics": "5e5e/refined-in/ab/layers.0"})
    made.store(refined, {"weight": torch.ones(4)})
    made.store(replace(first, key="fd" * 10, unavailable="no tokens"), {})
    out = command_line("library", "ls", library).out
    rows = [line.split() for line in out.splitlines() if line]
    assert ["models/first", "refined", "1", "4.1", "kB"] in rows
    assert [row[-4:] for row in rows if "built" in row][-1] == ["built", "2", "8.19", "kB"]
    assert ["work:", "0", "B"] in rows
    records = json.loads(command_line("library", "ls", library, "--json").out)
    kinds = {record["key"]: (record["kind"], record["model"]) for record in records}
    assert kinds["fe" * 10] == ("refined", "models/first")
    assert kinds["fd" * 10] == ("unavailable", "")


def test_verify_names_what_is_damaged_and_exits_with_1(
    command_line: CommandLine, library: Path
) -> None:
    assert command_line("library", "verify", library).code == 0
    tensors = next(library.rglob("tensors.safetensors"))
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = command_line("library", "verify", library, "--json")
    assert outcome.code == 1
    assert list(json.loads(outcome.out)["damaged"]) == [tensors.parent.name]
    assert (
        "1 damaged; the next fit builds them again"
        in command_line("library", "verify", library).out
    )


def test_gc_keeps_what_a_plan_can_use(command_line: CommandLine, library: Path) -> None:
    made = Library(library)
    kept = made.ls()
    made.store(replace(kept[0], key="ff" * 10), {"weight": torch.ones(4)})
    assert "removed 1 entries" in command_line("library", "gc", library).out
    assert Library(library).ls() == kept
    assert json.loads(command_line("library", "gc", library, "--json").out)["entries"] == 0


def test_gc_keeps_the_most_recently_used_within_a_size(
    command_line: CommandLine, library: Path
) -> None:
    folders = sorted(path.parent for path in library.rglob("entry.json"))
    for folder in folders:
        os.utime(folder / "entry.json", (1, 1))
    Library(library).tensors(folders[0].name)
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    outcome = command_line("library", "gc", library, "--keep-bytes", size)
    assert "removed 1 entries" in outcome.out
    assert [record.key for record in Library(library).ls()] == [folders[0].name]
    command_line("library", "gc", library, "--keep-bytes", "0")
    assert Library(library).ls() == []
    assert "parsecs" in command_line.refused("library", "gc", library, "--keep-bytes", "4 parsecs")
