"""What a change costs, measured from the block that changes on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from blockwright.pipeline.building import build_library
from blockwright.pipeline.measuring import (
    first_changed,
    measure_change,
    measure_plan,
    original_of_calibration,
)
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Choice, Preset
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

DROP = Choice(candidate="drop", stored_bytes=0, loss=0.0)


def test_it_is_that_of_the_whole_model(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    asked = request(model, tmp_path, candidates=("drop", "int8:rtn"), preset=Preset.FAST)
    run = open_run(asked, SilentProgress())
    plan = solve(pose_problem(run, build_library(run)).problem, Budget(bits=9.0))
    original = original_of_calibration(run, run.calibration_inputs.first(512))
    for gone in (("model.layers.1",), ("model.layers.2",), ("model.layers.1", "model.layers.2")):
        choices = dict.fromkeys(gone, DROP)
        whole = measure_plan(run, replace(plan, choices=choices), original, "whole")
        assert measure_change(run, choices, original) == whole.kl_divergence
        first = first_changed(run, choices)
        part = measure_plan(run, replace(plan, choices=choices), original, "part", first)
        assert asdict(part) == asdict(whole)


@pytest.mark.parametrize(
    ("sites", "first"),
    [
        (["model.layers.2.mlp", "model.layers.1"], 1),
        (["model.layers.2.self_attn.{q_proj,k_proj}"], 2),
        (["model.layers.1.kv_cache"], 1),
        (["model.embed_tokens", "model.layers.2"], 0),
    ],
)
def test_the_first_block_that_changes(
    sites: list[str], first: int, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    run = open_run(request(model, tmp_path), SilentProgress())
    assert first_changed(run, sites) == first
