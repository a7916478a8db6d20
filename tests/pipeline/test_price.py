"""The price: every stage has one, and the run lands near it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from benchmarks.price import Priced, compare, out_of_bounds

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.pipeline import probing
from blockwright.progress import SilentProgress, Stage
from blockwright.types import Budget, FitRequest, Preset
from tests.conftest import ModelFolder
from tests.fits import CANDIDATES, request, with_tokenizer, write_texts

KINDS = {
    "llama": {"intermediate_size": 128},
    "gpt2": {"n_inner": 128},
    "qwen3_moe": {"moe_intermediate_size": 64},
}


@dataclass
class Counting(SilentProgress):
    """Counts what the stages are told."""

    total: float | None = None
    done: float = 0
    names: list[str] = field(default_factory=list)

    @contextmanager
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> Iterator[Stage]:
        self.names.append(name)
        self.total, self.done = total, 0
        yield self

    def advance(self, amount: float = 1) -> None:
        self.done += amount


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FitRequest:
    """A request whose price starts no process of its own."""
    monkeypatch.setattr(probing, "ask_fresh_process", lambda loading: time.sleep(0.01))
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    return request(model, tmp_path, preset=Preset.BALANCED)


def test_every_stage_has_a_price_and_nothing_is_written(asked: FitRequest) -> None:
    price = pipeline.price(asked)
    assert not asked.out.exists()
    assert price.parts["sample"] == 0.0
    assert all(seconds > 0 for name, seconds in price.parts.items() if name != "sample")
    assert price.seconds == pytest.approx(sum(price.parts.values()))


def test_text_that_the_model_writes_has_a_price(asked: FitRequest) -> None:
    price = pipeline.price(replace(asked, calibration=None, sampled_share=0.5))
    assert price.parts["sample"] > 0


def test_a_larger_budget_takes_more_disk(asked: FitRequest) -> None:
    small, large = (
        pipeline.price(replace(asked, budget=Budget(ratio=ratio))).disk_bytes
        for ratio in (0.4, 0.8)
    )
    assert small < large


def test_the_probe_ends_when_all_its_steps_are_told(asked: FitRequest) -> None:
    progress = Counting()
    pipeline.price(asked, progress)
    assert progress.names[-1] == "probe one block"
    assert progress.done == progress.total


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_fit_lands_within_its_price(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind, **KINDS[kind]), tmp_path)
    texts, heldout = write_texts(tmp_path)
    options = ["--bits", "4.6", "--candidates", ",".join(CANDIDATES), "--threads", "1"]
    options += ["--calibration", str(texts), "--eval-text", str(heldout)]
    options += ["--calibration-tokens", "1024", "--sequence-length", "64", "--eval-tokens", "512"]
    figures = compare(Priced(kind, model, options), tmp_path / "work")
    assert out_of_bounds(figures) == [], figures


@pytest.mark.slow
def test_a_fit_of_the_bundled_model_lands_within_its_price(tmp_path: Path) -> None:
    options = ("--bits", "4.3", "--preset", "fast", "--threads", "1")
    figures = compare(Priced("bundled", bundled_model(), options), tmp_path / "work")
    assert out_of_bounds(figures) == [], figures
