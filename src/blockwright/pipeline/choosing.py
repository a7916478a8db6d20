"""The measured loop: solve, measure on the selection text, correct the predictions, solve again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run
from blockwright.pipeline.presets import ROUNDS
from blockwright.plan import corrected, correction_factors, plan_of, solve, uniform_plans
from blockwright.types import Budget, Option, Plan, Problem


@dataclass(frozen=True)
class Chosen:
    """The plan that measured best, and what it was measured against."""

    plan: Plan
    uniform: Plan | None
    """The best uniform plan; None when none fits."""
    measured: tuple[Plan, ...]
    """All plans measured on the selection text, in order."""


def choose_plan(run: Run, problem: Problem) -> Chosen:
    """The plan of least measured loss on the selection text.

    The uniform plan always competes: what is returned is never worse than it on that text.  Plans
    carry the first predictions of their losses, not the corrected ones.
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
        for _ in range(rounds):
            plan = solve_corrected(problem, budget, measured)
            if any(plan.choices == other.choices for other in measured):
                break
            measured.append(measure_on_selection(run, plan))
            stage.advance()
    return Chosen(best_measured(measured), uniform, tuple(measured))


def best_measured(plans: Sequence[Plan]) -> Plan:
    """The plan of least loss on the selection text; the first of equals."""
    return min(plans, key=lambda plan: plan.measured["selection_loss"])


def solve_corrected(problem: Problem, budget: Budget, measured: Sequence[Plan]) -> Plan:
    """The best plan by predictions that the measured plans have corrected."""
    mixed = [plan for plan in measured if not plan.name.startswith("uniform")]
    factors = correction_factors(problem, measured) if mixed else {}
    plan = solve(corrected(problem, factors), budget)
    return _as_predicted(problem, plan)


def _as_predicted(problem: Problem, plan: Plan) -> Plan:
    """The plan with the problem's own losses."""
    options: Mapping[tuple[str, str], Option] = {
        (option.site, option.candidate): option for option in problem.options
    }
    chosen = [options[site, choice.candidate] for site, choice in plan.choices.items()]
    return plan_of(problem, chosen, budget=plan.budget, name=plan.name, limits=plan.limits)
