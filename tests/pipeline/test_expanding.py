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
from tests.plan.problems import option, problem_of

STRUCTURES = ("id-p80:lord", "sparse20:wanda")
BUDGET = Budget(bits=14.0)
Posed = tuple[Run, Problem]


@pytest.fixture(scope="module")
def posed(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Posed:
    """One run for all tests; they ask the library, and add to it."""
    return pose(model_folder("llama"), tmp_path_factory.mktemp("expanding"))


def pose(model: Path, work: Path) -> Posed:
    asked = request(with_tokenizer(model, work), work, candidates=STRUCTURES, budget=BUDGET)
    run = open_run(asked, SilentProgress())
    return run, pose_problem(run, build_library(run)).problem


def with_choice(plan: Plan, other: Option) -> Plan:
    """The plan with another variant at one site."""
    choice = replace(plan.choices[other.site], candidate=other.candidate, key=other.key)
    return replace(plan, choices={**plan.choices, other.site: choice}, measured={})


def check_shares(run: Run, problem: Problem) -> None:
    """The plan's own choices share what it was measured to lose."""
    plan = measure_on_selection(run, solve(problem, BUDGET))
    at = {(o.site, o.candidate): o for o in expanded(run, problem, plan).options}
    shared = sum(at[site, choice.candidate].loss for site, choice in plan.choices.items())
    assert shared == pytest.approx(plan.measured["selection_loss"], rel=0.1)


def test_the_choices_of_a_plan_share_what_it_was_measured_to_lose(posed: Posed) -> None:
    check_shares(*posed)


@pytest.mark.slow
def test_so_do_those_of_an_encoder(model_folder: ModelFolder, tmp_path: Path) -> None:
    check_shares(*pose(model_folder("bert"), tmp_path))


def test_one_other_choice_loses_what_was_predicted(posed: Posed) -> None:
    run, problem = posed
    plan = measure_on_selection(run, solve(problem, BUDGET))
    loss = plan.measured["selection_loss"]
    at = {(o.site, o.candidate): o for o in expanded(run, problem, plan).options}
    site = "model.layers.2.mlp.down_proj"
    now = plan.choices[site].candidate
    for other in (o for (name, its), o in at.items() if name == site and its != now):
        measured = measure_on_selection(run, with_choice(plan, other))
        found = measured.measured["selection_loss"] - loss
        change = other.loss - at[site, now].loss
        assert change == pytest.approx(found, abs=0.4 * abs(found) + 0.02 * loss)


@pytest.mark.slow
def test_a_plan_found_so_is_no_worse_than_any_family(posed: Posed) -> None:
    run, problem = posed
    chosen = choose_plan(run, problem)
    losses = [plan.measured["selection_loss"] for plan in chosen.measured]
    assert len(chosen.measured) >= len(family_plans(problem, BUDGET)) == 2
    assert chosen.plan.measured["selection_loss"] == min(losses)
    assert chosen.plan.bits_per_weight <= 14.0
    again = choose_plan(run, problem)
    assert again.plan == chosen.plan
    for one, other in zip(chosen.measured, again.measured, strict=True):
        assert same_choices(one, other)


def test_means_of_losses() -> None:
    options = [option("a", "keep", 16, 0.0), option("a", "int8", 8, 0.5)]
    doubled = [replace(each, loss=2 * each.loss) for each in options]
    found = mean_of([problem_of(options), problem_of(doubled)]).options
    assert [each.loss for each in found] == [0.0, 0.75]
