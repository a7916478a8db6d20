"""Narrower parts that are trained against the whole one, block by block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.pipeline.building import build_library
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Preset
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

FIT, TRAINED = "narrow-p50:puzzle@steps=0", "narrow-p50:puzzle@steps=24"


@pytest.mark.parametrize("kind", ["llama", pytest.param("phi3", marks=pytest.mark.slow)])
def test_distilled_children_give_what_fitted_ones_do_or_better(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind), tmp_path)
    run = open_run(request(model, tmp_path, candidates=(FIT, TRAINED)), SilentProgress())
    problem = pose_problem(run, build_library(run)).problem
    losses = {(o.site, o.candidate): o.loss for o in problem.options}
    sizes = {(o.site, o.candidate): o.stored_bytes for o in problem.options}
    parts = sorted({site for site, candidate in losses if candidate == TRAINED})
    assert len(parts) == 3
    for part in parts:  # random blocks leave nothing to learn: the start may be the best state
        assert losses[part, TRAINED] <= losses[part, FIT] * 1.01
        assert sizes[part, TRAINED] == sizes[part, FIT]


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_distilled_plan_is_written_and_loads(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind), tmp_path)
    asked = request(
        model,
        tmp_path,
        candidates=("narrow-p50:puzzle@steps=4",),
        budget=Budget(ratio=0.9),
        preset=Preset.FAST,
    )
    result = pipeline.fit(asked)
    assert not result.unavailable
    loaded = AutoModelForCausalLM.from_pretrained(result.out, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert loaded.num_parameters() < original.num_parameters()
