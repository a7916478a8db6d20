"""The command line with a pipeline that only records what it was asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import blockwright
from blockwright.cli import run
from blockwright.progress import Progress
from blockwright.types import FitRequest, FitResult, LimitFigures, Price, Quality, Speed


@dataclass
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


class CommandLine:
    """Run a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self.capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def refused(self, *arguments: object) -> str:
        """The line of a refusal: one line on stderr, exit code 2, nothing on stdout."""
        outcome = self(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("blockwright: ")
        assert outcome.err.count("\n") == 1
        return outcome.err


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def make_result(out: Path) -> FitResult:
    return FitResult(
        limits=LimitFigures(workload="decode, batch 1, context 1024", profile=""),
        out=out,
        plan_path=out / "plan.json",
        report_path=out / "report.html",
        bits_per_weight=4.2978,
        bits_per_weight_uniform=4.25,
        size_bytes=5_300_000,
        original_size_bytes=14_700_000,
        original=Quality(tokens=1024, perplexity=7.5, kl_divergence=0.0, top1_agreement=1.0),
        fitted=Quality(tokens=1024, perplexity=7.53, kl_divergence=0.0021, top1_agreement=0.981),
        uniform=Quality(tokens=1024, perplexity=7.58, kl_divergence=0.0043, top1_agreement=0.97),
        uniform_candidate="int4-g64:gptq",
        original_speed=Speed(
            prefill_tokens_per_second=900.0,
            decode_tokens_per_second=41.25,
            resident_bytes=612_000_000,
            threads=2,
        ),
        fitted_speed=None,
        seconds=83.4,
        peak_rss_bytes=1_200_000_000,
        library_hits=3,
        library_misses=61,
        unavailable={"model.layers.0.mlp.up_proj int2-g64:gptq": "not finite"},
        notes=("calibration text: sampled from the model",),
    )


@dataclass
class RecordingPipeline:
    """Stands in for ``blockwright.pipeline`` and ``blockwright.api``."""

    requests: list[FitRequest] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    def fit(self, request: FitRequest, progress: Progress) -> FitResult:
        print("a library prints to stdout")
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        with progress.stage("capture", total=2, unit="blocks") as stage:
            stage.advance(2)
        return make_result(request.out)

    def price(self, request: FitRequest, progress: Progress) -> Price:
        self.requests.append(request)
        return Price(
            memory_bytes=2_000_000_000,
            disk_bytes=40_000_000,
            seconds=100.0,
            parts={"capture": 40.0, "build": 60.0},
        )

    def evaluate_model(self, model: str, **options: Any) -> dict[str, Any]:
        self.calls.append({"model": model, **options})
        return {"perplexity": float("inf"), "kl_divergence": None, "size_bytes": 1000}

    def inspect_model(self, model: str, **options: Any) -> dict[str, Any]:
        self.calls.append({"model": model, **options})
        site = {"id": "layers.0.q", "kind": "linear", "shape": [4, 8], "parameters": 32}
        return {"blocks": 1, "sites": [site], "stem_bytes": 64, "head_bytes": 0}

    def score_blocks(self, model: str, **options: Any) -> list[dict[str, Any]]:
        self.calls.append({"model": model, **options})
        return [{"block": 0, "block_influence": 0.25, "perplexity_without": None}]

    def generate_text(self, model: str, prompt: str, **options: Any) -> str:
        self.calls.append({"model": model, "prompt": prompt, **options})
        return "def [bold]f[/bold]():"


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> RecordingPipeline:
    recording = RecordingPipeline()
    stand_ins: dict[str, dict[str, Any]] = {
        "pipeline": {"fit": recording.fit, "price": recording.price},
        "api": {
            "evaluate_model": recording.evaluate_model,
            "inspect_model": recording.inspect_model,
            "generate_text": recording.generate_text,
            "score_blocks": recording.score_blocks,
        },
    }
    modules = {name: ModuleType(f"blockwright.{name}") for name in stand_ins}
    for name, functions in stand_ins.items():
        vars(modules[name]).update(functions)
        monkeypatch.setitem(sys.modules, f"blockwright.{name}", modules[name])
        monkeypatch.setattr(blockwright, name, modules[name], raising=False)
    return recording
