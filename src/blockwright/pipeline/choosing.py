"""The measured loop: solve, measure on the selection text, correct the predictions, solve again.

Where several families of formats are on offer, plans are then sought around the best measured one,
with predictions from its slopes (``expanding``): what structures cost together is not what they
cost one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from blockwright.errors import BudgetError
from blockwright.pipeline.expanding import expanded
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run
from blockwright.pipeline.presets import EXPANSIONS, ROUNDS
from blockwright.plan import (
    corrected,
    correction_factors,
    families_on_offer,
    only_family,
    solve,
    uniform_plans,
)
from blockwright.types import Budget, Plan, Problem


@dataclass(frozen=True)
class Chosen:
    """The plan that measured best, and what it was measured against."""

    plan: Plan
    uniform: Plan | None
    """The best uniform plan; None when none fits."""
    measured: tuple[Plan, ...]
    """All plans measured on the selection text, in order."""
    corrected: Problem | None = None
    """What was solved last, its predictions corrected by what was measured; None where a plan was
    given."""


def choose_plan(run: Run, problem: Problem) -> Chosen:
    """The plan of least measured loss on the selection text.

    The uniform plan always competes, and so does the best plan of every family of formats where
    there are several: what is returned is never worse than these on that text.  Every
    plan carries the loss that was predicted before it was measured; the library's problem keeps the
    last corrections, for other budgets.
    """
    budget = run.request.budget
    if budget is None:
        raise ValueError("choose_plan needs a budget")
    rounds = ROUNDS[run.request.preset]
    uniform = next(iter(uniform_plans(problem, budget)), None)
    measured: list[Plan] = []
    with run.progress.stage("measure plans", rounds + 1, "plans") as stage:
        if uniform is not None:
            uniform = measure_on_selection(run, uniform)
            measured.append(uniform)
        stage.advance()
        known = corrected(problem, correction_factors(problem, measured))
        measured += [measure_on_selection(run, plan) for plan in family_plans(known, budget)]
        known = corrected(problem, correction_factors(problem, measured))
        for _ in range(rounds):
            plan = solve(known, budget)
            if any(same_choices(plan, other) for other in measured):
                break
            measured.append(measure_on_selection(run, plan))
            known = corrected(problem, correction_factors(problem, measured))
            stage.advance()
    run.library.write_problem(known)
    if len(families_on_offer(problem)) > 1:
        measured += plans_around(run, problem, budget, measured)
    return Chosen(best_measured(measured), uniform, tuple(measured), known)


def plans_around(
    run: Run, problem: Problem, budget: Budget, measured: Sequence[Plan]
) -> list[Plan]:
    """Plans sought around the best measured one, each measured.

    Every next plan is solved from the mean of what was predicted around all of them: the mean of
    slopes is the slope between, so that steps grow smaller where single ones overshoot.
    """
    rounds, found = EXPANSIONS[run.request.preset], list[Plan]()
    with run.progress.stage("seek around the best plan", rounds, "plans") as stage:
        around = [expanded(run, problem, best_measured(measured))]
        for _ in range(rounds):
            plan = solve(mean_of(around), budget)
            if any(same_choices(plan, other) for other in (*measured, *found)):
                break
            found.append(measure_on_selection(run, plan))
            if len(found) < rounds:
                around.append(expanded(run, problem, plan))
            stage.advance()
    return found


def mean_of(problems: Sequence[Problem]) -> Problem:
    """A problem with the mean of every option's losses."""
    options = tuple(
        replace(same[0], loss=mean(option.loss for option in same))
        for same in zip(*(problem.options for problem in problems), strict=True)
    )
    return replace(problems[0], options=options)


def family_plans(problem: Problem, budget: Budget) -> list[Plan]:
    """The best plan of every family of formats alone; none where there is one family."""
    families, found = families_on_offer(problem), []
    for family in families if len(families) > 1 else ():
        try:
            plan = solve(only_family(problem, family), budget)
        except BudgetError:
            continue  # it does not reach the budget by itself
        found.append(replace(plan, name=f"only {family or 'grids'}"))
    return found


def same_choices(plan: Plan, other: Plan) -> bool:
    """Whether two plans put the same variants at the same sites."""
    mine, others = plan.choices, other.choices
    return (
        plan.healed == other.healed
        and mine.keys() == others.keys()
        and all(
            (mine[site].candidate, mine[site].key) == (others[site].candidate, others[site].key)
            for site in mine
        )
    )


def best_measured(plans: Sequence[Plan]) -> Plan:
    """The plan of least loss on the selection text; the first of equals."""
    return min(plans, key=lambda plan: plan.measured["selection_loss"])
