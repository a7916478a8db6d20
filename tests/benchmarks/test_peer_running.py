"""Environments and jobs: made once, refused in one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import __main__ as command_line
from benchmarks.peers import environments, quality, running
from benchmarks.peers.environments import (
    ENVIRONMENTS,
    Environment,
    PeerError,
    ensure_environment,
    failed,
)
from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.timed_fit import RecordingProgress, split_seconds

from blockwright.types import Preset

JOB = Job(model="m", tokens="t", out="", bits=4, group_size=64, seed=0, threads=1)
ANSWER = Answer(
    quantize_seconds=1.0,
    load_seconds=1.0,
    save_seconds=1.0,
    peak_bytes=1,
    stored_bytes={},
    counted="",
    settings={},
    versions={},
)


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Environments are made without pip; the commands that would install are kept."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(venv, "create", lambda folder, **_: folder.mkdir(parents=True))
    return commands


@pytest.fixture
def stub_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets every peer's Python be a shell script."""

    def install(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)
        monkeypatch.setattr(running, "ensure_environment", lambda *_: path)

    return install


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_requirements_are_pinned(environment: Environment) -> None:
    lines = environment.requirements.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert any(line.startswith("#") and "torch" in line for line in lines)


def test_an_environment_is_made_once(installs: list[list[str]], tmp_path: Path) -> None:
    pythons = {ensure_environment(ENVIRONMENTS["hqq"], tmp_path) for _ in range(2)}
    assert pythons == {tmp_path / "hqq" / "bin" / "python"}
    assert [Path(command[-1]).name for command in installs] == ["torch.txt", "hqq.txt"]


def test_an_environment_sees_what_it_shares_behind_its_own(
    installs: list[list[str]], tmp_path: Path
) -> None:
    ensure_environment(ENVIRONMENTS["hqq"], tmp_path)
    (link,) = (tmp_path / "hqq").rglob("*.pth")
    assert Path(link.read_text(encoding="utf-8").strip()).is_relative_to(tmp_path / "torch")
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_other_requirements_make_it_anew(
    installs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_environment(ENVIRONMENTS["hqq"], tmp_path)
    (tmp_path / "hqq" / "left over").touch()
    changed = tmp_path / "requirements"
    changed.mkdir()
    shutil.copy(ENVIRONMENTS["torch"].requirements, changed)
    (changed / "hqq.txt").write_text("hqq==9\n", encoding="ascii")
    monkeypatch.setattr(environments, "REQUIREMENTS", changed)
    ensure_environment(ENVIRONMENTS["hqq"], tmp_path)
    assert [Path(command[-1]).name for command in installs] == ["torch.txt", "hqq.txt", "hqq.txt"]
    assert not (tmp_path / "hqq" / "left over").exists()


def test_a_failed_installation_is_one_line_and_is_tried_again(
    installs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_environment(ENVIRONMENTS["torch"], tmp_path)
    installs.clear()
    working = subprocess.run

    def fail(command: list[str], stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        stdout.write("looking\nERROR: no such package\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        PeerError, match=r"hqq: pip .*ERROR: no such package.*leave it out"
    ) as error:
        ensure_environment(ENVIRONMENTS["hqq"], tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(subprocess, "run", working)
    ensure_environment(ENVIRONMENTS["hqq"], tmp_path)
    assert [Path(command[-1]).name for command in installs] == ["hqq.txt"]


def test_a_failed_peer_is_one_line_with_its_last_words(
    stub_python: Callable[[str], None], tmp_path: Path
) -> None:
    stub_python("echo loading; echo 'ValueError: 3 bits?' >&2; exit 7")
    message = r"hqq failed on int4-g64 with exit code 7 \(ValueError: 3 bits\?\)"
    with pytest.raises(PeerError, match=message) as error:
        running.run_peer("hqq", JOB, tmp_path, "content")
    assert "\n" not in str(error.value)
    assert re.fullmatch(message, failed(error.value)["error"])


def test_a_finished_job_is_not_run_again(
    stub_python: Callable[[str], None], tmp_path: Path
) -> None:
    ANSWER.write(tmp_path / ANSWER_FILE)
    calls = tmp_path / "calls"
    stub_python(f'echo "$2" >> {calls}; cp {tmp_path / ANSWER_FILE} .')
    runs = [running.run_peer("autoround", JOB, tmp_path, "content") for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].answer == ANSWER
    assert calls.read_text(encoding="ascii").split() == ["benchmarks.peers.runners.run_autoround"]


@pytest.mark.parametrize(
    ("name", "changes", "content"),
    [
        ("autoround", {"seed": 1}, "content"),
        ("autoround", {"bits": 3}, "content"),
        ("autoround", {}, "other tokens"),
        ("autoround-asym", {}, "content"),
    ],
)
def test_another_job_is_run(
    stub_python: Callable[[str], None],
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    content: str,
) -> None:
    ANSWER.write(tmp_path / ANSWER_FILE)
    stub_python(f"cp {tmp_path / ANSWER_FILE} .")
    first = running.run_peer("autoround", JOB, tmp_path, "content")
    second = running.run_peer(name, replace(JOB, **changes), tmp_path, content)
    assert first.folder != second.folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "gptq"], "unknown peer 'gptq'; there are gptqmodel, autoround, hqq"),
        (["--presets", "better"], "unknown preset 'better'; there are fast, balanced, best"),
        (["--formats", "int5-g64"], "format 'int5-g64': peers are run in int2"),
        (["--seeds", "0"], "--seeds 0: give 1 or more"),
        (["speed"], "unknown part 'speed'; there are quality, time, decode, report"),
        (["--contenders", "ggml"], "unknown contender 'ggml'; there are bf16, ours-int4"),
    ],
)
def test_bad_options_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.main([*arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def row(who: str, kl: float, bits: float = 4.3, **more: Any) -> dict[str, Any]:
    return {"format": "int4-g64", "who": who, "kl": kl, "bits": bits, **more}


def test_plans_compete_with_the_best_uniform_peer_and_with_every_mix() -> None:
    rows = [
        *(row("gptqmodel", 0.3), row("autoround", 0.1, 4.2), row("autoround", 0.3, 4.4)),
        *(row("hqq", 0.25, 4.5), row("autoscheme", 0.15, 4.25), row("our gptq", 0.01)),
    ]
    found = quality.rivals(rows, "int4-g64")
    assert found == {"autoround": pytest.approx(4.3), "autoscheme": 4.25}


def test_ratios_are_of_means_with_the_presets_bounds() -> None:
    rows = [row("autoround", 0.1), row("autoround", 0.3), row("autoscheme", 0.25)]
    for preset, rival, kl in (("balanced", "autoround", 0.1), ("best", "autoscheme", 0.1)):
        who = f"plan {preset} at the bits of {rival}"
        rows.append(row(who, kl, preset=preset, rival=rival))
    balanced, best = quality.ratios(rows)
    assert (balanced["ratio"], balanced["bound"]) == (pytest.approx(0.5), 0.7)
    assert (best["ratio"], best["bound"]) == (pytest.approx(0.4), 0.8)


def test_a_mix_is_asked_for_the_bits_of_the_uniform_format() -> None:
    setting = quality.Setting(
        work=Path("w"),
        model="m",
        seeds=[0],
        formats=["int3-g64"],
        peers=["autoscheme"],
        presets=[Preset.BALANCED],
        length=512,
        threads=1,
        steps=200,
    )
    job = quality.job_of(setting, 0, "int3-g64", Path("t"), "autoscheme")
    assert job.average_bits == 3 + 19 / 64
    assert quality.job_of(setting, 0, "int3-g64", Path("t"), "hqq").average_bits is None


def test_what_follows_the_folder_is_evaluation() -> None:
    stages = [("build", 1.0, 5.0), ("measure", 5.0, 6.0), ("write the folder", 6.5, 7.0)]
    stages += [("measure", 7.5, 9.0), ("reload", 9.0, 10.0)]
    split = split_seconds(stages, 10.5)
    assert split["fit_seconds"] == 7.0
    assert split["evaluation_seconds"] == 3.5
    assert split["fit_stages"] == {"build": 4.0, "measure": 1.0, "write the folder": 0.5}
    assert split["evaluation_stages"] == {"measure": 1.5, "reload": 1.0}
    with pytest.raises(ValueError, match="no stage 'write the folder'"):
        split_seconds(stages[:2], 10.5)


def test_stages_are_recorded_once_whatever_is_nested() -> None:
    progress = RecordingProgress()
    with progress.stage("outer"), progress.stage("inner"):
        pass
    with progress.stage("after"):
        pass
    assert [name for name, _, _ in progress.stages] == ["outer", "after"]
    (_, began, ended), (_, after, _) = progress.stages
    assert 0 <= began <= ended <= after
