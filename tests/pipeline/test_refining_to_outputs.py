"""Refinement aims at the original's weights or at its outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockwright.pipeline import presets
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.measuring import plan_stream
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.refining import solve_sequentially, target_weight
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Plan, Preset, Statistics
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer
from tests.layers import gram, outlier_layer
from tests.pipeline.test_fit import KINDS
from tests.pipeline.test_healing import final_hidden


def refined(run: Run, plan: Plan, matched: bool, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(presets.MATCHING, Preset.BALANCED, matched)
    return solve_sequentially(run, plan)


def planned(
    kind: str, candidates: tuple[str, ...], folder: ModelFolder, work: Path
) -> tuple[Run, Plan]:
    model = with_tokenizer(folder(kind, **KINDS[kind]), work)
    changes = {"candidates": candidates, "budget": Budget(bits=4.6), "calibration_tokens": 2048}
    asked = request(model, work, preset=Preset.BALANCED, **changes)
    run = open_run(asked, SilentProgress())
    return run, choose_plan(run, pose_problem(run, build_library(run)).problem).plan


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_aimed_at_outputs_the_last_block_comes_closer_than_aimed_at_weights(
    kind: str, model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plan = planned(kind, ("int2-g32:gptq",), model_folder, tmp_path)
    plans = [refined(run, plan, matched, monkeypatch) for matched in (False, True)]
    keys = [{c.key for c in each.choices.values() if c.key} for each in (plan, *plans)]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    (tmp_path / "a").mkdir()
    original = final_hidden(run.stream(), run, tmp_path / "a")
    errors = [
        (final_hidden(plan_stream(run, each), run, tmp_path / "a") - original).square().mean()
        for each in plans
    ]
    assert errors[1] < errors[0]


def test_refined_again_it_is_the_same(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plan = planned("llama", ("int3-g32:gptq",), model_folder, tmp_path)
    once = refined(run, plan, True, monkeypatch)
    assert refined(run, plan, True, monkeypatch) == once


def test_without_a_cross_gram_the_target_is_the_weight() -> None:
    layer = outlier_layer(0, 8, 32, 100)
    statistics = Statistics(tokens=100, input_gram=gram(layer.X_TI))
    assert target_weight(layer.W_OI, None) is layer.W_OI
    assert target_weight(layer.W_OI, statistics) is layer.W_OI
    other = statistics.with_cross_gram(1.1 * gram(layer.X_TI))
    assert not torch.allclose(target_weight(layer.W_OI, other), layer.W_OI)
