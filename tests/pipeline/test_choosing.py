"""The measured loop, and blocks that may be dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan, same_choices
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.types import Budget
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

STRUCTURE = ("drop", "int4-g32:gptq", "int8:rtn")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_chosen_plan_measures_best_and_every_loss_was_predicted(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind), tmp_path)
    run = open_run(request(model, tmp_path), SilentProgress())
    posed = pose_problem(run, build_library(run))
    chosen = choose_plan(run, posed.problem)
    losses = [plan.measured["selection_loss"] for plan in chosen.measured]
    assert chosen.uniform in chosen.measured
    assert chosen.plan.measured["selection_loss"] == min(losses)
    assert 0.2 < chosen.plan.loss / min(losses) < 5
    assert all(o.loss > 0 for o in posed.problem.options if o.candidate != "keep")
    first = solve(posed.problem, Budget(bits=4.6))
    assert any(same_choices(first, plan) for plan in chosen.measured)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_plan_with_dropped_blocks_loads_generates_and_pads(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind), tmp_path)
    candidates = ("drop-run", *STRUCTURE[1:])  # blocks alone
    asked = request(model, tmp_path, candidates=candidates, budget=Budget(bits=3.5))
    result = pipeline.fit(asked)
    plan = json.loads(result.plan_path.read_text(encoding="utf-8"))
    dropped = [s for s, choice in plan["choices"].items() if choice["candidate"] == "drop"]
    assert dropped
    assert result.bits_per_weight <= 3.5
    loaded = AutoModelForCausalLM.from_pretrained(result.out, dtype=torch.float32).eval()
    assert loaded.config.num_hidden_layers == 3 - len(dropped)
    prompts = torch.tensor([[1, 9, 8, 30, 41], [0, 0, 1, 50, 61]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    both = loaded.generate(input_ids=prompts, attention_mask=(prompts != 0).long(), **options)
    alone = loaded.generate(input_ids=prompts[1:, 2:], use_cache=False, **options)
    assert both[1, 5:].tolist() == alone[0, 3:].tolist()


def test_dropping_is_measured_with_everything_else_kept(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    """The cost of a drop is the loss of the model without that block, on calibration rows."""
    model = with_tokenizer(model_folder("llama"), tmp_path)
    run = open_run(request(model, tmp_path, candidates=STRUCTURE), SilentProgress())
    problem = pose_problem(run, build_library(run)).problem
    drops = {o.site: o for o in problem.options if o.candidate == "drop"}
    assert len(drops) == 3 + 2 * 3  # blocks, and two parts of each
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = run.calibration_inputs.first(4096).values
    with torch.no_grad():
        whole = loaded(input_ids=ids).logits[:, :-1].log_softmax(-1)
        del loaded.model.layers[1]
        for index, layer in enumerate(loaded.model.layers):
            layer.self_attn.layer_idx = index
        loaded.config.num_hidden_layers = 2
        less = loaded(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    expected = float((whole.exp() * (whole - less)).sum(-1).mean())
    drop = drops["model.layers.1"]
    assert drop.loss == pytest.approx(expected, rel=1e-3)
    norms = sum(p.numel() for n, p in loaded.model.layers[1].named_parameters() if "norm" in n)
    assert drop.other_bytes == -4 * norms


def test_measuring_again_looks_up(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    run = open_run(request(model, tmp_path), SilentProgress())
    chosen = choose_plan(run, pose_problem(run, build_library(run)).problem)
    files = set((tmp_path / "library" / "results").iterdir())
    assert measure_on_selection(run, chosen.plan) == chosen.plan
    assert set((tmp_path / "library" / "results").iterdir()) == files
