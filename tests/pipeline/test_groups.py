"""``fit`` with candidates that scale groups, end to end on tiny models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright import pipeline
from blockwright.errors import PlanError
from blockwright.evaluate import run_to_file
from blockwright.numerics.losses import row_errors
from blockwright.pipeline import presets
from blockwright.pipeline.building import build_library
from blockwright.pipeline.grouping import groups_of, wanted_group_variants
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.placing import FoldedSource, dense_weight
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import resolve_edited, solve
from blockwright.progress import SilentProgress
from blockwright.stream import Inputs, weight_of
from blockwright.types import Budget, Choice, FitRequest, FitResult, Group, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer
from tests.models import tiny_model
from tests.pipeline.test_fit import load

SCALED = "int4-g32:awq>gptq"
CANDIDATES = (SCALED, "int8:rtn")
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 128},
    "gemma3": {"intermediate_size": 128},
    "opt": {"ffn_dim": 128},
    "gpt2": {"n_inner": 128},
    "bert": {"intermediate_size": 128},
}
TIGHT = Budget(bits=6.5)
"""Under 8 bits: some groups have to be scaled."""


def asked(kind: str, model_folder: ModelFolder, work: Path, **changes: Any) -> FitRequest:
    model = with_tokenizer(model_folder(kind, **SHAPES[kind]), work)
    options = {"candidates": CANDIDATES, "budget": TIGHT, "preset": Preset.FAST}
    return request(model, work, **(options | changes))


def half_precision(kind: str, work: Path, preset: Preset) -> FitRequest:
    """A model stored in bfloat16."""
    folder = tiny_model(kind, work / "original", dtype=torch.bfloat16, **SHAPES[kind])
    model = with_tokenizer(folder, work)
    return request(model, work, candidates=CANDIDATES, budget=TIGHT, preset=preset)


def scaled_groups(plan: Plan) -> list[str]:
    return [site for site, choice in plan.choices.items() if choice.candidate == SCALED]


def test_a_scaled_plan_keeps_its_budget_reloads_and_builds_itself_again(tmp_path: Path) -> None:
    first = half_precision("llama", tmp_path, Preset.FAST)
    result = checked_fit(first)
    again = replace(first, out=tmp_path / "again", plan=result.plan_path, budget=None)
    pipeline.fit(again)
    before, after = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "again")
    assert before["model.safetensors"] == after["model.safetensors"]


@pytest.mark.slow
def test_a_scaled_plan_of_norms_that_add_one_is_healed_and_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.MATCHING, Preset.BALANCED, False)  # leaves healing something to do
    result = checked_fit(half_precision("gemma3", tmp_path, Preset.BALANCED))
    assert Plan.read(result.plan_path).healed


def checked_fit(asked: FitRequest) -> FitResult:
    """A fit with scaled groups: budget, bytes, prediction, card, generation.

    ``fit`` itself compares the reloaded folder with the assembled one.
    """
    result = pipeline.fit(asked)
    plan = Plan.read(result.plan_path)
    assert scaled_groups(plan)
    for group in scaled_groups(plan):
        path, _, names = group.partition("{")
        members = [path + name for name in names.rstrip("}").split(",")]
        assert not set(members) & set(plan.choices)
    assert result.size_bytes == sum(f.stat().st_size for f in result.out.glob("*.safetensors"))
    assert result.size_bytes <= plan.size_bytes
    assert result.bits_per_weight <= 6.5
    assert plan.loss / 2 < plan.measured["selection_loss"] < plan.loss * 2
    assert f"x `{SCALED}`" in (result.out / "README.md").read_text(encoding="utf-8")
    check_generation(result.out)
    return result


def check_generation(folder: Path) -> None:
    """With and without a cache the same tokens."""
    loaded, prompt = load(folder), torch.tensor([[1, 9, 8, 30, 41]])
    found = [
        loaded.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*found)


def posed(kind: str, model_folder: ModelFolder, work: Path, **changes: Any) -> tuple[Run, Any]:
    run = open_run(asked(kind, model_folder, work, **changes), SilentProgress())
    return run, pose_problem(run, build_library(run))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_folded_groups_are_an_equivalent_transform_of_the_original(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, _ = posed(kind, model_folder, tmp_path)
    chosen = {wanted_group_variants(run, g)[0].key: g for g in groups_of(run)}
    assert len(chosen) == 6
    inputs = Inputs.of_tokens(run.texts.selection.ids)
    source = FoldedSource(run, run.original.parameters, chosen)
    changed = [name for g in chosen.values() for name in g.parameters]
    before, after = run.original.parameters.load(changed), source.load(changed)
    assert not any(torch.equal(before[name], after[name]) for name in changed)
    streams = (run.stream(), run.stream(source))
    plain, folded = (
        torch.cat(list(run_to_file(stream, inputs, tmp_path / f"{index}.bin").outputs()))
        for index, stream in enumerate(streams)
    )
    assert (folded - plain).norm() < 1e-4 * plain.norm()


def test_stored_errors_are_those_of_the_original_space(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, found = posed("llama", model_folder, tmp_path)
    group = groups_of(run)[0]
    (item,) = wanted_group_variants(run, group)
    errors = run.library.row_errors(item.key)
    expected = torch.cat([by_hand(run, group, item.key, index) for index in range(3)])
    torch.testing.assert_close(errors, expected, rtol=2e-2, atol=1e-7)
    record = run.library.lookup(item.key)
    assert record is not None
    assert record.error == pytest.approx(float(errors.sum()), rel=1e-5)
    (option,) = (o for o in found.problem.options if o.key == item.key)
    assert option.contains == tuple(member.id for member in group.members)
    assert option.stored_bytes == record.stored_bytes
    assert option.weights == sum(member.weights for member in group.members)


def by_hand(run: Run, group: Group, key: str, index: int) -> Tensor:
    """diag(D H D^T) with D = W_hat / t - W and H from the inputs that a plain forward sees."""
    member = group.members[index]
    model = load(run.original.source.path)
    seen: list[Tensor] = []
    module = model.get_submodule(member.id)
    module.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=run.calibration_inputs.values)
    X = torch.cat(seen)
    W = weight_of(member, run.original.parameters.load([member.parameter])[member.parameter])
    t = run.library.tensors(key)["scale"]
    return row_errors(dense_weight(run, member, key) / t - W, X.T @ X / len(X))


def test_groups_that_take_no_fold_are_unavailable_with_the_reason(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    _, found = posed("bert", model_folder, tmp_path)
    reasons = dict(found.unavailable)
    attention = "encoder.layer.0.attention.self.{query,key,value} " + SCALED
    assert "no norm of the block makes their input" in reasons[attention]
    assert "something else reads" in reasons["encoder.layer.2.intermediate.{dense} " + SCALED]
    assert not any("{" in option.site for option in found.problem.options)


def test_a_dropped_block_contains_its_groups(model_folder: ModelFolder, tmp_path: Path) -> None:
    _, found = posed("llama", model_folder, tmp_path, candidates=(*CANDIDATES, "drop"))
    (drop,) = (o for o in found.problem.options if (o.site, o.candidate) == DROPPED)
    groups = [site for site in drop.contains if "{" in site]
    assert groups == [
        "model.layers.1.mlp.{gate_proj,up_proj}",
        "model.layers.1.self_attn.{q_proj,k_proj,v_proj}",
    ]


DROPPED = ("model.layers.1", "drop")


def test_a_plan_that_keeps_all_groups_builds_itself_again(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, found = posed("llama", model_folder, tmp_path)
    plan = solve(found.problem, Budget(bits=9.5))
    assert sum("{" in site for site in plan.choices) == 6
    assert not scaled_groups(plan)
    plan.write(tmp_path / "plan.json")
    edited = replace(run.request, plan=tmp_path / "plan.json", budget=None)
    again = open_run(edited, SilentProgress())
    problem = pose_problem(again, build_library(again)).problem
    assert again.edited is not None
    assert resolve_edited(again.edited, problem).choices == plan.choices


def test_errors_of_edited_plans_name_the_group(model_folder: ModelFolder, tmp_path: Path) -> None:
    _, found = posed("llama", model_folder, tmp_path)
    plan = solve(found.problem, TIGHT)
    group = scaled_groups(plan)[0]
    member = group.partition("{")[0] + group.partition("{")[2].partition(",")[0]
    kept = Choice(candidate="keep", stored_bytes=0, loss=0.0)
    edits = {
        f"chooses for {member} and also for {group}": {member: kept},
        f"asks for int8:rtn at {group}; available there: {SCALED}, keep": {
            group: replace(kept, candidate="int8:rtn")
        },
        f"names {group}x, which": {group + "x": kept},
    }
    for message, edit in edits.items():
        edited = replace(plan, choices={**plan.choices, **edit})
        with pytest.raises(PlanError) as caught:
            resolve_edited(edited, found.problem)
        assert message in str(caught.value)


def test_lost_entries_are_built_again_to_the_same_bytes(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, _ = posed("llama", model_folder, tmp_path)
    keys = [wanted_group_variants(run, group)[0].key for group in groups_of(run)]
    entries = [run.library.folder / "entries" / key[:2] / key for key in keys]
    before = [(entry / "tensors.safetensors").read_bytes() for entry in entries]
    for entry in entries:
        shutil.rmtree(entry)
    assert build_library(run).misses == 6
    assert [(entry / "tensors.safetensors").read_bytes() for entry in entries] == before
