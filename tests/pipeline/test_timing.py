"""The loop of solve, time, tighten, solve again, with a timer that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from blockwright.errors import BudgetError
from blockwright.evaluate import TimedFolder
from blockwright.pipeline import timing
from blockwright.pipeline.choosing import Chosen
from blockwright.pipeline.opening import Run
from blockwright.pipeline.timing import ChosenInTime, PlanTiming, choose_in_time, time_edited
from blockwright.plan import solve
from blockwright.types import Budget, FitRequest, Plan, Problem, Timing, Workload
from tests.plan.problems import option, problem_of

WORKLOAD = Workload()
SITES = [f"layers.{index}.q" for index in range(8)]


def problem() -> Problem:
    """Eight linears; int4 takes a quarter of the time, int8 half of it."""
    times = {"keep": (200, 0.0, 1000), "int8": (100, 0.1, 500), "int4": (50, 1.0, 250)}
    options = [
        replace(option(site, name, size, loss), latency_ns=ns, resident_bytes=size)
        for site in SITES
        for name, (size, loss, ns) in times.items()
    ]
    known = Timing(profile="d", workload=WORKLOAD, fixed_ns=0, original_ns=8000)
    return replace(problem_of(options), timing=known)


@dataclass(frozen=True)
class BareRun:
    """As much of a run as the loop needs."""

    request: FitRequest


def run_for(budget: Budget | None) -> Run:
    return cast(Run, BareRun(FitRequest(model="m", out=Path("o"), budget=budget)))


@dataclass
class Slower:
    """A machine that is slower than its profile says, by a factor for what is packed."""

    factor: float
    plans: list[Plan] = field(default_factory=list)

    def __call__(self, run: Run, plan: Plan) -> PlanTiming:
        self.plans.append(plan)
        assert plan.latency_ns is not None
        return PlanTiming(folder(8000), folder(round(plan.latency_ns * self.factor)))


def folder(least_ns: int) -> TimedFolder:
    return TimedFolder(least_ns=least_ns, library_bytes=0, loaded_bytes=0, resident_bytes=0)


@dataclass
class Choose:
    """Solves, and remembers under which speedups."""

    asked: list[float] = field(default_factory=list)

    def __call__(self, run: Run, problem: Problem) -> Chosen:
        budget = run.request.budget
        assert budget is not None
        self.asked.append(budget.speedup or 0.0)
        found = solve(problem, budget)
        return Chosen(found, replace(found, name="uniform int8"), (found,))


def chosen(
    budget: Budget, timer: Callable[[Run, Plan], PlanTiming | None]
) -> tuple[ChosenInTime, Choose]:
    choose = Choose()
    return choose_in_time(run_for(budget), problem(), timer, choose), choose


def test_a_plan_that_is_as_fast_as_predicted_is_taken_at_once() -> None:
    found, choose = chosen(Budget(speedup=2), Slower(1.0))
    assert choose.asked == [2]
    assert found.timing is not None
    assert found.timing.speedup == pytest.approx(2)


def test_a_shortfall_within_the_tolerance_is_taken() -> None:
    _, choose = chosen(Budget(speedup=2), Slower(1.019))
    assert choose.asked == [2]


def test_the_limit_is_tightened_by_what_was_measured() -> None:
    timer = Slower(1.2)
    found, choose = chosen(Budget(speedup=2), timer)
    assert choose.asked == [2, pytest.approx(2.4)]
    assert found.timing is not None
    assert found.timing.speedup >= 2 * 0.98
    assert found.chosen.plan.loss > timer.plans[0].loss


def test_plans_carry_the_budget_that_was_asked() -> None:
    budget = Budget(bits=12, speedup=2)
    found, _ = chosen(budget, Slower(1.2))
    for plan in (found.chosen.plan, found.chosen.uniform, *found.chosen.measured):
        assert plan is not None
        assert plan.budget == str(budget)
        assert plan.limits == {"bits": 12, "speedup": 2}


def test_after_three_more_tries_the_largest_measured_speedup_is_named() -> None:
    fresh = iter([1.3, 1.3, 1.4, 1.4, 1.4, 1.4])

    def ever_slower(run: Run, plan: Plan) -> PlanTiming:
        return PlanTiming(folder(8000), folder(round(8000 / 2 * next(fresh))))

    with pytest.raises(BudgetError, match=r"timed here is 1\.538 times as fast; ask for that") as e:
        chosen(Budget(speedup=2), ever_slower)
    assert "\n" not in str(e.value)
    assert next(fresh) == 1.4  # four of the six were used


def test_a_limit_is_not_tightened_beyond_the_fastest_plan() -> None:
    timer = Slower(2.5)
    with pytest.raises(BudgetError, match=r"1\.600 times as fast"):
        chosen(Budget(speedup=3), timer)
    assert [plan.speedup for plan in timer.plans] == [pytest.approx(3, rel=0.2), pytest.approx(4)]


def test_what_no_plan_is_predicted_to_reach_is_refused_before_anything_is_timed() -> None:
    timer = Slower(1.0)
    with pytest.raises(BudgetError, match=r"fastest plan is predicted 4\.0000 times as fast"):
        chosen(Budget(speedup=5), timer)
    assert not timer.plans


def test_without_a_limit_on_speed_nothing_is_timed() -> None:
    timer = Slower(1.0)
    found, choose = chosen(Budget(bits=9), timer)
    assert (choose.asked, timer.plans, found.timing) == ([0.0], [], None)


def test_the_same_timings_lead_to_the_same_plan() -> None:
    first, second = (chosen(Budget(speedup=2), Slower(1.2))[0] for _ in range(2))
    assert first == second


def test_where_memory_does_not_allow_timing_it_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "not_timed", lambda run: "was not timed: too large")
    found, _ = chosen(Budget(speedup=2), lambda run, plan: None)
    assert found.notes == ("was not timed: too large",)
    assert found.timing is None


def test_an_edited_plan_is_timed_only_where_it_carries_a_limit_on_speed() -> None:
    timer = Slower(1.0)
    plan = solve(problem(), Budget(speedup=2))
    free = replace(plan, limits={"bits": 4})
    assert time_edited(run_for(None), Chosen(plan, None, ()), timer).timing is not None
    assert time_edited(run_for(None), Chosen(free, None, ()), timer).timing is None
    assert len(timer.plans) == 1
