"""Attention and FFNs as candidates: measured, contained, planned, edited, healed, mapped."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright import pipeline
from blockwright.errors import PlanError
from blockwright.pipeline import presets
from blockwright.pipeline.building import build_library
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.posing import Posed, pose_problem
from blockwright.pipeline.weighing import weigh
from blockwright.plan import resolve_edited, solve
from blockwright.plan.limits import ram_of
from blockwright.progress import SilentProgress
from blockwright.tuning import TuningSettings
from blockwright.types import Budget, Option, PartRole, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer
from tests.loading.test_parts import zeroed
from tests.models import DECODER, KINDS, tiny_model
from tests.pipeline.test_fit import load

CANDIDATES = ("drop", "int8:rtn")
RUNS = ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3))
ATTENTION, FFN = "model.layers.1.self_attn", "model.layers.1.mlp"


def posed(model: Path, work: Path, **changes: Any) -> tuple[Run, Posed]:
    options = {"candidates": CANDIDATES, "preset": Preset.FAST, **changes}
    run = open_run(request(model, work, **options), SilentProgress())
    return run, pose_problem(run, build_library(run))


def drops(found: Posed) -> dict[str, Option]:
    return {o.site: o for o in found.problem.options if o.candidate == "drop"}


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gpt_neox", "qwen3_moe"])
def test_a_part_costs_what_the_model_loses_with_it_at_zero(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Two parts cost together what their block does, and neighbours are measured in pairs."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    run, found = posed(model, tmp_path)
    parts, dropped = parts_of(run), drops(found)
    ids = run.calibration_inputs.first(2048).values
    with torch.no_grad():
        whole = load(model)(input_ids=ids).logits[:, :-1].log_softmax(-1)
        for part in parts[2:4]:
            less = zeroed(model, (part,))(input_ids=ids).logits[:, :-1].log_softmax(-1)
            expected = float((whole.exp() * (whole - less)).sum(-1).mean())
            assert dropped[part.site.id].loss == pytest.approx(expected, rel=1e-3)
    pairs = {pair.sites: pair.loss for pair in found.problem.pairs}
    for one, other in zip(parts[::2], parts[1::2], strict=True):
        ids_of = (one.site.id, other.site.id)
        together = sum(dropped[site].loss for site in ids_of) + pairs[ids_of]
        assert together == pytest.approx(dropped[ids_of[0].rpartition(".")[0]].loss)
    assert {(a.site.id, b.site.id) for a, b in pairwise(parts[::2])} < pairs.keys()
    assert len(pairs) == 3 + 2 * 3


@pytest.mark.parametrize("kind", ["llama", "opt", "mixtral"])
def test_a_block_contains_its_parts_and_they_their_linears(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, found = posed(with_tokenizer(model_folder(kind), tmp_path), tmp_path)
    parts, dropped = parts_of(run), drops(found)
    assert [part.role for part in parts] == [PartRole.ATTENTION, PartRole.FFN] * 3
    for part in parts:
        members = {site.id for site in part.members}
        assert set(dropped[part.site.id].contains) == members
        block = dropped[f"{run.skeleton.block_path}.{part.site.block}"]
        assert {part.site.id, *members} < set(block.contains)
    biases = sum(run.skeleton.parameters[s.bias].nbytes for s in parts[1].members if s.bias)
    assert dropped[parts[1].site.id].other_bytes <= -biases


@pytest.mark.parametrize("kind", ["llama", "gemma3", "opt", "qwen3_moe"])
def test_a_plan_of_drops_keeps_its_budget_and_loads(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares outputs."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    asked = request(
        model, tmp_path, candidates=("drop",), budget=Budget(bits=29.0), preset=Preset.FAST
    )
    result = pipeline.fit(asked)
    assert result.bits_per_weight <= 29.0
    chosen = {s for s, c in Plan.read(result.plan_path).choices.items() if c.candidate == "drop"}
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    assert chosen & set(config["quantization_config"]["parts"])


def test_an_edited_plan_drops_parts_and_the_report_says_so(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    first = request(model, tmp_path, candidates=("int8:rtn",), budget=Budget(bits=9.0))
    plan = json.loads(pipeline.fit(first).plan_path.read_text(encoding="utf-8"))
    kept = {site: c for site, c in plan["choices"].items() if not site.startswith(f"{ATTENTION}.")}
    kept[ATTENTION] = {"candidate": "drop", "stored_bytes": 0, "loss": 0.0, "key": ""}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({**plan, "choices": kept}), encoding="utf-8")
    result = pipeline.fit(replace(first, out=tmp_path / "dropped", plan=edited, budget=None))
    page = (result.out / "blockwright-report.html").read_text(encoding="utf-8")
    assert "Dropped: self_attn of block 1." in page
    assert "block 1, self_attn.q_proj: dropped with all of self_attn" in page
    assert load(result.out)(torch.tensor([[1, 9, 8]])).logits.isfinite().all()


def test_a_plan_that_decides_a_part_twice_is_refused(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    _, found = posed(with_tokenizer(model_folder("llama"), tmp_path), tmp_path)
    plan = solve(found.problem, Budget(bits=9.0))
    drop = replace(plan.choices[f"{FFN}.up_proj"], candidate="drop", key="")
    twice = replace(plan, choices={**plan.choices, FFN: drop})
    with pytest.raises(PlanError, match=f"and also for {FFN}, which holds it"):
        resolve_edited(twice, found.problem)


def test_healing_leaves_what_is_gone(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases of a dropped FFN are not trained: the folder has no place for them."""
    settings = TuningSettings(steps=4, rate=0.01, checks=2)
    monkeypatch.setitem(presets.HEALING, Preset.BALANCED, settings)
    monkeypatch.setitem(presets.MATCHING, Preset.BALANCED, False)
    model = with_tokenizer(model_folder("opt"), tmp_path)
    first = request(model, tmp_path, candidates=("int3-g32:gptq",), budget=Budget(bits=6.0))
    plan = json.loads(pipeline.fit(first).plan_path.read_text(encoding="utf-8"))
    ffn = "model.decoder.layers.1.{fc1,fc2}"
    linears = {f"model.decoder.layers.1.fc{number}" for number in (1, 2)}
    kept = {site: choice for site, choice in plan["choices"].items() if site not in linears}
    kept[ffn] = {"candidate": "drop", "stored_bytes": 0, "loss": 0.0, "key": ""}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({**plan, "choices": kept}), encoding="utf-8")
    again = replace(first, preset=Preset.BALANCED, plan=edited, budget=None)
    result = pipeline.fit(replace(again, out=tmp_path / "healed"))
    assert Plan.read(result.plan_path).healed


def test_linears_scaled_across_parts_are_not_dropped_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi's attention and FFN read one norm: a scale of it is for both."""
    fields = DECODER | {"num_key_value_heads": 4, "intermediate_size": 128}
    monkeypatch.setitem(KINDS, "phi", ("PhiForCausalLM", fields))
    model = with_tokenizer(tiny_model("phi", tmp_path / "original"), tmp_path)
    candidates = ("drop", "int8:rtn", "int4-g32:awq>gptq")
    _, found = posed(model, tmp_path, candidates=candidates)
    reasons = {name: why for name, why in found.unavailable.items() if name.endswith(" drop")}
    assert len(reasons) == 6
    assert all("scaled with others by one candidate" in why for why in reasons.values())
    assert len(drops(found)) == 3
    solve(found.problem, Budget(bits=7.0))


def test_dropped_attention_takes_its_cache_along(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    budget = Budget(ratio=0.6, ram_bytes=1 << 30, context=128)
    kv = ("int8@page=8,window=8",)
    run, found = posed(model, tmp_path, budget=budget, kv=kv)
    dropped = drops(found)
    assert "model.layers.1.kv_cache" in dropped[ATTENTION].contains
    assert "model.layers.1.kv_cache" not in dropped[FFN].contains
    problem = weigh(run, found.problem).problem
    memory = problem.memory
    assert memory is not None
    option = next(o for o in problem.options if (o.site, o.candidate) == (ATTENTION, "drop"))
    tokens, heads, width, item = 128, 2, 16, 4
    assert ram_of(option, memory, tokens) == -tokens * (2 * heads * width * item - 2 * item)


def test_a_run_of_blocks_is_dropped_alone(model_folder: ModelFolder, tmp_path: Path) -> None:
    """``drop-run`` offers blocks, not parts, and a plan drops neighbours."""
    model = with_tokenizer(model_folder("llama"), tmp_path)
    _, found = posed(model, tmp_path, candidates=("drop-run", "int8:rtn"))
    assert list(drops(found)) == [f"model.layers.{block}" for block in range(3)]
    assert found.problem.one_run
    for bits in (3.0, 5.0):
        choices = solve(found.problem, Budget(bits=bits)).choices
        gone = [site for site in drops(found) if choices[site].candidate == "drop"]
        assert gone in (list(drops(found))[start:stop] for start, stop in RUNS)


@pytest.mark.parametrize("bits", [9.0, 5.0, 4.0])
def test_a_plan_file_is_built_to_the_same_bytes(
    bits: float, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Whatever it does with parts: keep them, narrow them, drop them."""
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    candidates = ("drop", "narrow-p50+int4-g32:modegpt>rtn", "int8:rtn")
    first = request(
        model, tmp_path, candidates=candidates, budget=Budget(bits=bits), preset=Preset.FAST
    )
    result = pipeline.fit(first)
    again = replace(first, out=tmp_path / "again", plan=result.plan_path, budget=None)
    pipeline.fit(again)
    before, after = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "again")
    assert before["model.safetensors"] == after["model.safetensors"]
    assert before["config.json"] == after["config.json"]
