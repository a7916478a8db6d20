"""The solver against exhaustive search, and laws of its answers."""

from __future__ import annotations

import ctypes
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from blockwright.errors import BudgetError, PlanError
from blockwright.plan import frontier, search, solve, solving
from blockwright.plan.limits import Limit, budget_bytes, cost_of
from blockwright.plan.program import build_program
from blockwright.plan.search import best_columns
from blockwright.types import Budget, Option, Plan, Problem
from tests.plan.problems import (
    all_choices,
    cheapest_within,
    least_by_table,
    option,
    problem_of,
    realistic_problem,
    scattered_problem,
)

LOSSES = st.one_of(st.integers(0, 30).map(float), st.floats(-6, 3).map(lambda power: 10.0**power))
tried = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Two or three linears in a block and one beside it; perhaps ties, a group, a drop, a table."""
    inner = [f"layers.0.{name}" for name in ("q", "k", "v")[: draw(st.integers(2, 3))]]
    tie = draw(st.sampled_from(["", "qkv"]))
    sizes = st.integers(1, 120)
    options = []
    for site in [*inner, "layers.1.q"]:
        tied = tie if site in inner else ""
        options.append(option(site, "keep", 200, 0.0, tie=tied))
        for candidate in draw(st.sampled_from([("int2",), ("int2", "int4"), ("int2", "int8")])):
            options.append(option(site, candidate, draw(sizes), draw(LOSSES), tie=tied))
    held = tuple(inner)
    if draw(st.booleans()):
        group = option("layers.0.qkv", "int3:awq", draw(sizes), draw(LOSSES), contains=held)
        options.append(group)
        held = ("layers.0.qkv", *held)
    if draw(st.booleans()):
        options.append(option("layers.0", "keep", 0, 0.0, weights=0))
        freed = draw(st.integers(-40, 0))
        dropped = option("layers.0", "drop", 0, draw(LOSSES), weights=0, contains=held)
        options.append(replace(dropped, other_bytes=freed))
    if draw(st.booleans()):
        options.append(option("embed", "keep", 300, 0.0, weights=0))
        options.append(
            option("embed", "int8", draw(st.integers(100, 299)), draw(LOSSES), weights=0)
        )
    return problem_of(options)


def budgets() -> st.SearchStrategy[Budget]:
    return st.one_of(
        st.floats(0.5, 15).map(lambda bits: Budget(bits=bits)),
        st.integers(150, 1300).map(lambda size: Budget(size_bytes=size)),
        st.floats(0.1, 0.99).map(lambda ratio: Budget(ratio=ratio)),
    )


def solved_or_none(problem: Problem, budget: Budget) -> Plan | None:
    try:
        return solve(problem, budget)
    except BudgetError as error:
        if "fits as it is" in str(error):
            assume(False)
        return None


def chosen_options(problem: Problem, plan: Plan) -> list[Option]:
    offered = {(item.site, item.candidate): item for item in problem.options}
    return [offered[site, choice.candidate] for site, choice in plan.choices.items()]


@tried
@given(problems(), budgets())
def test_solve_finds_what_exhaustive_search_finds(problem: Problem, budget: Budget) -> None:
    least = cheapest_within(problem, budget)
    plan = solved_or_none(problem, budget)
    assert (plan is None) == (least is None)
    if plan is not None and least is not None:
        assert plan.loss == pytest.approx(least, rel=1e-6)
        chosen = chosen_options(problem, plan)
        assert sum(cost_of(item, budget) for item in chosen) <= budget_bytes(problem, budget)
        assert tuple(sorted(chosen, key=repr)) in {
            tuple(sorted(choice, key=repr)) for choice in all_choices(problem)
        }


@pytest.mark.parametrize("seed", range(12))
def test_a_dozen_sites_are_solved_as_well_as_by_a_table_over_all_bytes(seed: int) -> None:
    problem = scattered_problem(sites=14, candidates=6, seed=seed)
    budget = Budget(bits=4.1 + seed / 3)
    least = least_by_table(problem, budget_bytes(problem, budget))
    assert solve(problem, budget).loss == pytest.approx(least, rel=2e-6)


@tried
@given(problems(), st.integers(150, 1300), st.integers(50, 700))
def test_two_limits_at_once_are_both_kept(problem: Problem, size: int, linear: int) -> None:
    limits = [
        Limit("size", size - problem.fixed_bytes, lambda o: cost_of(o, Budget(size_bytes=size))),
        Limit("linears", linear, lambda o: cost_of(o, Budget(bits=1.0))),
    ]
    program = build_program(problem, limits)
    taken = best_columns(program)
    losses = [
        sum(item.loss for item in chosen)
        for chosen in all_choices(problem)
        if all(sum(limit.cost(item) or 0 for item in chosen) <= limit.bound for limit in limits)
    ]
    assert (taken is None) == (not losses)
    if taken is not None:
        assert program.loss[taken].sum() == pytest.approx(min(losses), rel=1e-6)
        assert (program.cost[:, taken].sum(axis=1) <= program.bound).all()


@tried
@given(problems(), budgets(), st.randoms(use_true_random=False))
def test_the_order_of_the_options_does_not_matter(
    problem: Problem, budget: Budget, draw: random.Random
) -> None:
    plan = solved_or_none(problem, budget)
    options = list(problem.options)
    draw.shuffle(options)
    assert solved_or_none(replace(problem, options=tuple(options)), budget) == plan


@pytest.mark.parametrize("factor", [2.0**-40, 1e-9, 3.7, 1e12])
def test_losses_in_another_unit_give_the_same_plan(factor: float) -> None:
    problem = realistic_problem(sites=20, candidates=8, seed=3)
    scaled = replace(
        problem, options=tuple(replace(o, loss=o.loss * factor) for o in problem.options)
    )
    plan, again = (solve(p, Budget(bits=3.3)) for p in (problem, scaled))
    assert again.loss == pytest.approx(plan.loss * factor, rel=2e-6)
    if math.frexp(factor)[0] == 0.5:
        assert {s: c.candidate for s, c in again.choices.items()} == {
            s: c.candidate for s, c in plan.choices.items()
        }


def test_one_huge_loss_does_not_blind_the_solver_to_the_small_ones() -> None:
    options = [
        *(
            option("a", name, size, 1e9 * loss)
            for name, size, loss in (("keep", 200, 0), ("int2", 20, 1))
        ),
        *(
            option("b", name, size, loss)
            for name, size, loss in (("keep", 200, 0), ("int2", 20, 3e-6))
        ),
        *(
            option("c", name, size, loss)
            for name, size, loss in (("keep", 200, 0), ("int2", 20, 2e-6))
        ),
    ]
    plan = solve(problem_of(options), Budget(bits=8 * 420 / 300))
    assert [choice.candidate for choice in plan.choices.values()] == ["keep", "keep", "int2"]


def test_more_budget_never_raises_the_loss() -> None:
    problem = realistic_problem(sites=40, candidates=12, seed=5)
    steps = [Budget(bits=2.2 + 0.1 * step) for step in range(40)]
    plans = frontier(problem, [Budget(bits=1.0), *steps])
    assert len(plans) == len(steps)
    losses = [plan.loss for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert all(
        plan.limits == {"bits": budget.bits} for plan, budget in zip(plans, steps, strict=True)
    )
    assert all(plan.bits_per_weight <= plan.limits["bits"] for plan in plans)


def test_a_plan_that_is_better_at_a_smaller_budget_stands_at_the_larger_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The solver may be off by its gap; a frontier may not show it."""
    problem = realistic_problem(sites=5, candidates=6, seed=1)
    small, large = (Budget(bits=bits) for bits in (3.0, 5.0))
    good = solve(problem, small)
    monkeypatch.setattr(
        solving,
        "solve",
        lambda _, budget: replace(
            good,
            loss=good.loss * (1 if budget == small else 1.5),
            limits={"bits": budget.bits},
            budget=str(budget),
        ),
    )
    found = frontier(problem, [large, small])
    assert [plan.loss for plan in found] == [good.loss, good.loss]
    assert [plan.budget for plan in found] == [str(large), str(small)]


def test_a_solver_that_goes_over_the_limit_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS keeps a row to 1e-6 only; bytes are counted exactly."""
    problem = scattered_problem(sites=14, candidates=6, seed=4)
    calls = 0

    def loose(loss: Any, constraints: list[Any], **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            constraints[1].ub = constraints[1].ub + 40
        return milp(loss, constraints=constraints, **options)

    monkeypatch.setattr(search, "milp", loose)
    plan = solve(problem, Budget(bits=5))
    assert calls > 1
    assert plan.bits_per_weight <= 5


def test_what_the_solver_prints_from_c_does_not_reach_stdout(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with search._quiet():
        ctypes.CDLL(None).puts(b"a line of its own")
    print("result", flush=True)
    assert capfd.readouterr().out == "result\n"


def test_no_plan_is_over_its_budget_on_problems_as_large_as_real_ones() -> None:
    for seed in range(3):
        problem = realistic_problem(sites=150, candidates=10, seed=seed)
        plan = solve(problem, Budget(bits=3.3))
        assert 3.29 < plan.bits_per_weight <= 3.3


def test_what_a_plan_measures_is_a_budget_that_allows_it() -> None:
    problem = realistic_problem(sites=15, candidates=8, seed=1)
    plan = solve(problem, Budget(bits=3.7))
    assert solve(problem, Budget(bits=plan.bits_per_weight)).loss <= plan.loss
    assert solve(problem, Budget(size_bytes=plan.size_bytes)).loss <= plan.loss
    ratio = plan.size_bytes / problem.original_bytes
    assert solve(problem, Budget(ratio=ratio)).loss <= plan.loss


def test_equal_candidates_are_told_apart_by_keep_then_size_then_name() -> None:
    options = [
        *(option("a", name, 50, 1.0) for name in ("int4-b", "int4-a")),
        option("a", "int8", 60, 1.0),
        option("a", "keep", 200, 0.0),
        *(
            option("table", name, size, 0.0, weights=0)
            for name, size in (("int8", 10), ("keep", 20))
        ),
    ]
    plan = solve(problem_of(options), Budget(bits=5))
    assert {site: choice.candidate for site, choice in plan.choices.items()} == {
        "a": "int4-a",
        "table": "keep",
    }


def test_a_budget_below_the_smallest_plan_names_one_that_works() -> None:
    options = [(name, 200 if name == "keep" else 33) for name in ("keep", "int2")]
    sites = [f"s{index}" for index in range(3)]
    problem = problem_of(
        [option(s, n, size, float(n != "keep"), weights=97) for s in sites for n, size in options]
    )
    asked_again: list[tuple[Budget, Callable[[str], Budget]]] = [
        (Budget(bits=0.1), lambda word: Budget(bits=float(word))),
        (Budget(size_bytes=10), lambda word: Budget(size_bytes=int(word))),
        (Budget(ratio=0.001), lambda word: Budget(ratio=float(word))),
    ]
    for asked, again in asked_again:
        with pytest.raises(BudgetError, match="the smallest plan has") as caught:
            solve(problem, asked)
        word = str(caught.value).partition("smallest plan has ")[2].split()[0]
        plan = solve(problem, again(word))
        assert {choice.candidate for choice in plan.choices.values()} == {"int2"}
        assert "\n" not in str(caught.value)


def test_the_smallest_plan_drops_what_it_can() -> None:
    options = [
        option("layers.0.q", "keep", 200, 0.0),
        option("layers.0.q", "int2", 25, 1.0),
        option("layers.1.q", "keep", 200, 0.0),
        option("layers.1.q", "int2", 25, 1.0),
        option("layers.0", "keep", 0, 0.0, weights=0),
        option("layers.0", "drop", 0, 9.0, weights=0, contains=("layers.0.q",), other_bytes=-30),
    ]
    problem = problem_of(options)
    with pytest.raises(BudgetError, match="smallest plan has 95 bytes"):
        solve(problem, Budget(size_bytes=94))
    plan = solve(problem, Budget(size_bytes=95))
    assert {site: choice.candidate for site, choice in plan.choices.items()} == {
        "layers.0": "drop",
        "layers.1.q": "int2",
    }
    assert plan.size_bytes == 95
    assert plan.bits_per_weight == 8 * 25 / 200


@pytest.mark.parametrize(
    "budget", [Budget(bits=16), Budget(bits=99.0), Budget(ratio=1.0), Budget(size_bytes=10**9)]
)
def test_a_budget_that_the_original_meets_is_refused(budget: Budget) -> None:
    with pytest.raises(BudgetError, match="fits as it is"):
        solve(realistic_problem(sites=3, candidates=4, seed=0), budget)


def test_contradictions_in_a_problem_are_named() -> None:
    sites = [option(site, "keep", 10, 0.0) for site in ("a", "b", "c")]
    small = [option(site, "int2", 5, 1.0) for site in ("a", "b", "c")]
    cases = {
        "offered twice": [*sites, *small, small[0]],
        "no options": [*sites, *small, option("x", "drop", 0, 1.0, contains=("gone",))],
        "different sites": [
            *(*sites, *small),
            option("x", "drop", 0, 1.0, contains=("a",)),
            option("x", "int3", 0, 1.0, contains=("a", "b")),
        ],
        "do not nest": [
            *(*sites, *small),
            option("x", "drop", 0, 1.0, contains=("a", "b")),
            option("y", "drop", 0, 1.0, contains=("b", "c")),
        ],
        "different ties": [*sites, *small, option("a", "int8", 7, 1.0, tie="t")],
        "no candidate in common": [
            option("a", "int2", 5, 1.0, tie="t"),
            option("b", "int4", 5, 1.0, tie="t"),
        ],
        "contains a part of tie t": [
            *(replace(item, tie="t") for item in (*sites, *small)),
            option("x", "drop", 0, 1.0, contains=("a",)),
        ],
    }
    for words, options in cases.items():
        with pytest.raises(PlanError, match=words):
            solve(problem_of(options), Budget(bits=0.5))


def test_the_solver_writes_nothing_to_stdout_and_needs_no_torch() -> None:
    script = (
        "import sys, json\n"
        "from blockwright.plan import solve\n"
        "from blockwright.types import Budget\n"
        "from tests.plan.problems import realistic_problem\n"
        "problem = realistic_problem(sites=60, candidates=20, seed=1)\n"
        "plans = [solve(problem, Budget(bits=bits)) for bits in (2.5, 3.3)]\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([plan.to_json() for plan in plans]))\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        for _ in range(2)
    ]
    assert len(json.loads(runs[0].stdout)) == 2
    assert runs[0].stdout == runs[1].stdout
