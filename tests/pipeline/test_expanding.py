"""Around a measured plan, slopes say what other choices would lose there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan, family_plans, mean_of, same_choices
from blockwright.pipeline.expanding import expanded
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Option, Plan, Problem
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

STRUCTURES = ("id-p80:lord", "id-p90:lord", "sparse20:wanda", "sparse10:wanda")
BUDGET = Budget(bits=14.0)


def posed(model: Path, work: Path) -> tuple[Run, Problem]:
    asked = request(with_tokenizer(model, work), work, candidates=STRUCTURES, budget=BUDGET)
    run = open_run(asked, SilentProgress())
    return run, pose_problem(run, build_library(run)).problem


def with_choice(plan: Plan, option: Option) -> Plan:
    """The plan with another variant at one site."""
    choice = replace(plan.choices[option.site], candidate=option.candidate, key=option.key)
    return replace(plan, choices={**plan.choices, option.site: choice}, measured={})


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_choices_of_a_plan_share_what_it_was_measured_to_lose(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, problem = posed(model_folder(kind), tmp_path)
    plan = measure_on_selection(run, solve(problem, BUDGET))
    at = {(o.site, o.candidate): o for o in expanded(run, problem, plan).options}
    shared = sum(at[site, choice.candidate].loss for site, choice in plan.choices.items())
    assert shared == pytest.approx(plan.measured["selection_loss"], rel=0.1)


def test_one_other_choice_loses_what_was_predicted(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, problem = posed(model_folder("llama"), tmp_path)
    plan = measure_on_selection(run, solve(problem, BUDGET))
    loss = plan.measured["selection_loss"]
    at = {(o.site, o.candidate): o for o in expanded(run, problem, plan).options}
    for site in ("model.layers.0.mlp.down_proj", "model.layers.2.self_attn.v_proj"):
        now = plan.choices[site].candidate
        others = [o for (name, other), o in at.items() if name == site and other != now]
        for option in others:
            measured = measure_on_selection(run, with_choice(plan, option))
            change = option.loss - at[site, now].loss
            found = measured.measured["selection_loss"] - loss
            assert change == pytest.approx(found, abs=0.4 * abs(found) + 0.02 * loss)


def test_a_plan_found_so_is_no_worse_than_any_family(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run, problem = posed(model_folder("llama"), tmp_path)
    chosen = choose_plan(run, problem)
    losses = [plan.measured["selection_loss"] for plan in chosen.measured]
    assert len(chosen.measured) >= len(family_plans(problem, BUDGET)) == 2
    assert chosen.plan.measured["selection_loss"] == min(losses)
    assert chosen.plan.bits_per_weight <= 14.0
    again = choose_plan(run, problem)
    assert again.plan == chosen.plan
    for one, other in zip(chosen.measured, again.measured, strict=True):
        assert same_choices(one, other)


def test_means_of_losses(model_folder: ModelFolder, tmp_path: Path) -> None:
    _, problem = posed(model_folder("llama"), tmp_path)
    doubled = replace(problem, options=tuple(replace(o, loss=2 * o.loss) for o in problem.options))
    for option, mean in zip(problem.options, mean_of(problem, doubled).options, strict=True):
        assert mean == replace(option, loss=1.5 * option.loss)
