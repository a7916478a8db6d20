"""Refined variants that were lost are solved again behind the same prefix."""

from __future__ import annotations

import shutil
from pathlib import Path

from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.refining import refined_variants, solve_sequentially
from blockwright.progress import SilentProgress
from blockwright.types import Preset
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer


def test_lost_refined_entries_are_solved_again_to_the_same_bytes(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    run = open_run(request(model, tmp_path, preset=Preset.BALANCED), SilentProgress())
    plan = choose_plan(run, pose_problem(run, build_library(run)).problem).plan
    refined = solve_sequentially(run, plan)
    keys = [item.key for item in refined_variants(run, plan).values()]
    assert {choice.key for choice in refined.choices.values() if choice.key} >= set(keys)
    lost = [run.library.folder / "entries" / key[:2] / key for key in keys[2:4]]
    before = [(entry / "tensors.safetensors").read_bytes() for entry in lost]
    for entry in lost:
        shutil.rmtree(entry)
    assert solve_sequentially(run, plan) == refined
    assert [(entry / "tensors.safetensors").read_bytes() for entry in lost] == before
