"""Memory and speed on the command line: ``plan`` without the model, ``profile``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.cli.fit_report import limits_line
from blockwright.library import Library
from blockwright.types import (
    CacheGrowth,
    LimitFigures,
    Memory,
    Phase,
    Plan,
    Problem,
    Profile,
    Workload,
)
from tests.cli.conftest import CommandLine
from tests.cli.test_library_and_plan import make_problem
from tests.conftest import ModelFolder

BLOCKS = {f"layers.{index}": 10 for index in range(4)}


def problem() -> Problem:
    """Four linears: a candidate takes memory by its bytes, and time by its format."""
    bare = make_problem()
    options = tuple(
        replace(
            option,
            resident_bytes=option.stored_bytes,
            work=(f"linear 64x64 {option.candidate.partition(':')[0]}",),
        )
        for option in bare.options
    )
    caches = {block: CacheGrowth(token_bytes=2) for block in BLOCKS}
    memory = Memory(fixed_bytes=40, activation_bytes=60, activation_tokens=9, caches=caches)
    return replace(bare, options=options, memory=memory)


def profile(context: int = 512, model: str = "models/first") -> Profile:
    times = {"keep": 1000, "int8": 600, "int4-g64": 300}
    return Profile(
        machine={"processor": "abacus"},
        model=model,
        dtype="bfloat16",
        workload=Workload(context=context),
        outside_ns=60,
        original_extra_ns=0,
        blocks_ns=BLOCKS,
        work_ns={f"linear 64x64 {name}": ns for name, ns in times.items()},
        untimed={"linear 64x64 int2-g64": "no packed kernel"},
    )


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    Library(folder).write_problem(problem())
    return folder


def test_plan_keeps_several_limits(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    profile().write(tmp_path / "profile.json")
    limits = ("--bits", "9", "--ram", "24kB", "--context", "512", "--speedup", "1.9")
    line = ("plan", library, *limits, "--profile", tmp_path / "profile.json")
    outcome = command_line(*line, "--out", tmp_path / "p", "--json")
    assert outcome.code == 0, outcome.err
    plan = Plan.read(tmp_path / "p")
    assert plan.limits == {"bits": 9.0, "ram_bytes": 24000, "speedup": 1.9}
    assert plan.bits_per_weight <= 9
    assert plan.ram_bytes is not None
    assert plan.ram_bytes <= 24000
    assert plan.speedup is not None
    assert plan.speedup >= 1.9
    assert plan.profile == profile().digest
    assert plan.workload == {"phase": "decode", "batch": 1, "context": 512}
    assert not {"int2-g64:gptq"} & {choice.candidate for choice in plan.choices.values()}
    printed = json.loads(outcome.out)
    assert printed["ram_bytes"] == plan.ram_bytes
    text = command_line(*line, "--out", tmp_path / "p").out
    assert "of memory at 512 tokens, predicted" in text


def test_plan_finds_the_librarys_own_profile_of_a_workload(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    for found in (profile(64), profile(), replace(profile(), work_ns={"linear 1x1 keep": 5})):
        Library(library).store_result(f"profile-{found.digest}", found.to_json())
    for context in (64, 512):
        line = ("plan", library, "--speedup", "2", "--context", context, "--out", tmp_path / "p")
        assert command_line(*line).code == 0
        assert Plan.read(tmp_path / "p").profile == profile(context).digest
    refused = command_line.refused(
        "plan", library, "--speedup", "2", "--context", "9", "--out", "p"
    )
    assert "nothing was timed for models/first; give --profile" in refused


def test_plan_refuses_what_is_out_of_reach(
    command_line: CommandLine, library: Path, tmp_path: Path
) -> None:
    profile().write(tmp_path / "profile.json")
    line = ("plan", library, "--out", tmp_path / "p", "--profile", tmp_path / "profile.json")
    assert "predicted 3.1538 times" in command_line.refused(*line, "--speedup", "9")
    assert "takes 9316 bytes of memory" in command_line.refused(*line, "--ram", "1kB")
    other = ("--speedup", "2", "--phase", "prefill")
    assert "the profile is of decode" in command_line.refused(*line, *other)
    assert not (tmp_path / "p").exists()


def test_three_limits_take_under_five_seconds_and_no_torch(library: Path, tmp_path: Path) -> None:
    Library(library).store_result("profile-d", profile().to_json())
    limits = ["--bits", "9", "--ram", "24kB", "--speedup", "1.9"]
    script = (
        "import sys\nfrom blockwright.cli import run\n"
        f"code = run(['plan', {str(library)!r}, *{limits}, '--out', {str(tmp_path / 'p')!r}])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert sum(__import__('os').times()[:2]) < 5\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_profile_measures_and_writes_a_file(
    command_line: CommandLine, model_folder: ModelFolder, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "profile.json"
    line = ("profile", model_folder("llama"), "--out", out, "--candidates", "int4-g32,int8:rtn")
    where = ("--phase", "prefill", "--batch", "2", "--context", "16", "--threads", "1")
    outcome = command_line(*line, *where, "--json")
    assert outcome.code == 0, outcome.err
    found = Profile.read(out)
    assert found.workload == Workload(phase=Phase.PREFILL, batch=2, context=16)
    assert found.time_of(("linear 64x64 int4-g32",)) is not None
    printed = json.loads(outcome.out)
    assert printed.pop("profile_path") == str(out)
    assert printed.pop("digest") == found.digest
    assert printed == json.loads(json.dumps(found.to_json()))
    assert "all that is no product" in command_line(*line, *where).out


def test_profile_refuses_what_it_cannot_measure(
    command_line: CommandLine, model_folder: ModelFolder, tmp_path: Path
) -> None:
    line = ("profile", "--out", tmp_path / "p.json", "--context", "16")
    assert "give --phase prefill" in command_line.refused(*line, model_folder("bert"))
    assert "models of text" in command_line.refused(
        *line, model_folder("vit"), "--phase", "prefill"
    )
    deep = ("profile", model_folder("llama"), "--out", tmp_path / "p.json", "--context", "4096")
    assert "128 positions" in command_line.refused(*deep)
    assert not (tmp_path / "p.json").exists()


def test_predicted_and_measured_limits_stand_in_one_line() -> None:
    figures = LimitFigures(workload="decode", profile="d")
    assert limits_line(figures) == ""
    figures = replace(figures, ram_bytes_predicted=2_000_000, speedup_predicted=1.5)
    assert limits_line(figures) == "decode: memory 2 MB predicted, speedup 1.50 predicted"
    figures = replace(figures, ram_bytes_measured=2_100_000, speedup_measured=1.4)
    assert limits_line(figures) == (
        "decode: memory 2 MB predicted (measured 2.1 MB), speedup 1.50 predicted (measured 1.40)"
    )
