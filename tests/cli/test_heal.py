"""``blockwright heal`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blockwright
from blockwright.types import HealRequest, HealResult, Quality
from tests.cli.conftest import CommandLine, RecordingPipeline

LINE = ("heal", "fitted", "--against", "original", "--out", "o")


@pytest.fixture
def asked(pipeline: RecordingPipeline) -> list[HealRequest]:
    """Requests that reached the pipeline."""
    found: list[HealRequest] = []

    def heal(request: HealRequest, progress: object) -> HealResult:
        found.append(request)
        return result(request.out)

    vars(blockwright.pipeline)["heal"] = heal
    return found


def result(out: Path) -> HealResult:
    quality = Quality(tokens=64, perplexity=8.0, kl_divergence=0.03, top1_agreement=0.9)
    return HealResult(
        out=out,
        adapters={"e2eqp": 56},
        trainable=1000,
        parameters=2000,
        optimizer="adam",
        optimizer_bytes=8000,
        steps=100,
        best_step=88,
        rollbacks=1,
        tokens_per_step=2048,
        selection_loss_before=0.04,
        selection_loss_after=0.02,
        original=Quality(tokens=64, perplexity=7.5),
        before=quality,
        after=quality,
        recovered=0.55,
        size_bytes_before=10,
        size_bytes=10,
        seconds=300.0,
        training_seconds=290.0,
        notes=("shipped text",),
    )


def test_options_reach_the_pipeline(command_line: CommandLine, asked: list[HealRequest]) -> None:
    options = ("--adapter", "lora@rank=4", "--minutes", "2.5", "--optimizer", "adam8bit")
    outcome = command_line(*LINE, *options, "--data", "d", "--no-tables", "--seed", "3")
    assert outcome.code == 0
    assert asked == [
        HealRequest(
            model="fitted",
            against="original",
            out=Path("o"),
            data=Path("d"),
            adapter="lora@rank=4",
            optimizer="adam8bit",
            minutes=2.5,
            tables=False,
            seed=3,
        )
    ]


def test_the_python_function_asks_the_same(asked: list[HealRequest]) -> None:
    blockwright.heal_model("fitted", against="original", out="o", steps=7)
    assert asked == [HealRequest(model="fitted", against="original", out=Path("o"), steps=7)]


def test_the_table_shows_three_models_and_what_was_recovered(
    command_line: CommandLine, asked: list[HealRequest]
) -> None:
    shown = command_line(*LINE).out
    assert "recovered 55.0% of the excess loss" in shown
    assert "rolled back 1 times" in shown
    assert "note: shipped text" in shown
    assert "0.03000" in shown


def test_json_is_flat(command_line: CommandLine, asked: list[HealRequest]) -> None:
    data = json.loads(command_line(*LINE, "--json").out)
    assert data["kl_divergence_after"] == 0.03
    assert data["perplexity_original"] == 7.5
    assert "kl_divergence_original" not in data
    assert data["adapters"] == {"e2eqp": 56}


def test_the_original_must_be_named(command_line: CommandLine, asked: list[HealRequest]) -> None:
    assert "--against" in command_line.refused("heal", "fitted", "--out", "o")
