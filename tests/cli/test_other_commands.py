"""The commands beside ``fit``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blockwright.cli import demo
from blockwright.types import Budget
from tests.cli.conftest import CommandLine, RecordingPipeline


def test_evaluate_passes_its_options_and_prints_figures(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    line = ("evaluate", "m", "--against", "o", "--eval-text", "t.txt", "--eval-tokens", "64")
    outcome = command_line(*line, "--seed", "3", "--kv", "int4", "--attention", "keep")
    call = pipeline.calls[0]
    call.pop("progress")
    assert call == {
        "model": "m",
        "against": "o",
        "kv": "int4",
        "attention": "keep",
        "eval_text": Path("t.txt"),
        "eval_tokens": 64,
        "sequence_length": None,
        "revision": None,
        "seed": 3,
        "threads": None,
        "device": "cpu",
        "trust_remote_code": False,
    }
    assert "1 kB" in outcome.out


def test_figures_that_are_not_finite_become_null(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    outcome = command_line("evaluate", "m", "--eval-text", "t.txt", "--json")
    assert json.loads(outcome.out)["perplexity"] is None


def test_inspect_lists_sites(command_line: CommandLine, pipeline: RecordingPipeline) -> None:
    outcome = command_line("inspect", "m", "--revision", "r")
    assert pipeline.calls == [{"model": "m", "revision": "r", "trust_remote_code": False}]
    assert "stem bytes  64 B" in outcome.out
    assert "layers.0.q  linear  4 x 8" in outcome.out
    assert json.loads(command_line("inspect", "m", "--json").out)["blocks"] == 1


def test_inspect_scores_blocks_on_a_text(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    asked = ("inspect", "m", "--scores", "t.txt", "--score-tokens", "64", "--threads", "1")
    outcome = command_line(*asked)
    assert "block influence  perplexity without" in outcome.out
    assert "0.25" in outcome.out
    call = pipeline.calls[1]
    assert (call["text"], call["tokens"], call["threads"]) == (Path("t.txt"), 64, 1)
    assert json.loads(command_line(*asked, "--json").out)["scores"][0]["block_influence"] == 0.25


def test_generate_prints_the_text_as_it_is(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    asked = ("--max-new-tokens", "5", "--kv", "int8", "--attention", "mean")
    outcome = command_line("generate", "m", "def", *asked)
    assert outcome.out == "def [bold]f[/bold]():\n"
    assert pipeline.calls[0]["max_new_tokens"] == 5
    assert pipeline.calls[0]["kv"] == "int8"
    assert pipeline.calls[0]["attention"] == "mean"
    assert json.loads(command_line("generate", "m", "def", "--json").out) == {
        "prompt": "def",
        "text": "def [bold]f[/bold]():",
    }


def test_methods_are_listed_with_all_fields(command_line: CommandLine) -> None:
    entries = json.loads(command_line("methods", "--json").out)
    names = {entry["name"]: entry for entry in entries}
    assert {"int", "gptq", "rtn"} <= set(names)
    for entry in entries:
        assert set(entry) == {"name", "kind", "family", "paper", "claim", "claim_state"}
    assert names["gptq"]["kind"] == "method"
    assert names["gptq"]["family"] == "quantize"
    assert "Frantar" in names["gptq"]["paper"]
    assert names["int"]["kind"] == "format"
    assert "gptq" in command_line("methods").out


def make_bundle(package: Path) -> None:
    folder = package / "bundled" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def test_the_demo_fits_the_bundled_model_with_its_library_beside(
    command_line: CommandLine,
    pipeline: RecordingPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_bundle(tmp_path)
    monkeypatch.setattr(demo, "files", lambda _: tmp_path)
    outcome = command_line("demo", "--out", tmp_path / "demo")
    assert outcome.code == 0
    request = pipeline.requests[0]
    assert request.model == str(tmp_path / "bundled" / "model")
    assert request.budget == Budget(bits=4.3)
    assert request.library == tmp_path / "demo-library"


@pytest.mark.parametrize("ours", [True, False])
def test_the_demo_replaces_an_earlier_demo_and_nothing_else(
    command_line: CommandLine,
    pipeline: RecordingPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: bool,
) -> None:
    make_bundle(tmp_path)
    monkeypatch.setattr(demo, "files", lambda _: tmp_path)
    out = tmp_path / "demo"
    out.mkdir()
    method = "blockwright" if ours else "gptq"
    (out / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    command_line("demo", "--out", out)
    assert out.exists() is not ours


def test_a_missing_bundle_is_refused(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "files", lambda _: tmp_path)
    assert "bundled model" in command_line.refused("demo")


def test_unknown_commands_are_refused_with_the_nearest(command_line: CommandLine) -> None:
    assert "Did you mean 'fit'" in command_line.refused("fti")


def test_no_command_shows_the_help(command_line: CommandLine) -> None:
    outcome = command_line()
    assert outcome.code == 0
    for name in ("fit", "plan", "evaluate", "inspect", "generate", "methods", "library", "demo"):
        assert name in outcome.out


def test_help_is_fast_and_loads_no_torch() -> None:
    script = """
import sys, time
began = time.process_time()
from blockwright.cli import run
code = run(["fit", "--help"])
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert time.process_time() - began < 3, time.process_time() - began
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_and_the_script_are_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blockwright", "library", "ls", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("blockwright: library nowhere does not exist;")
