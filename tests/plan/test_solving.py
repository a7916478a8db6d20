"""Plans equal the best of all plans, keep their budget and never get worse with more of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockwright.errors import BudgetError, PlanError
from blockwright.plan import check_plan, resolve_edited, solve, unbuilt, uniform_plans
from blockwright.types import Budget, Choice, Option, Plan, Problem

WEIGHTS = 64


def option(site: str, candidate: str, size: int, loss: float, tie: str = "") -> Option:
    return Option(
        site=site, candidate=candidate, weights=WEIGHTS, stored_bytes=size, loss=loss, tie=tie
    )


def problem_of(options: Sequence[Option], sites: int) -> Problem:
    return Problem(
        model="test",
        fingerprint="f",
        statistics="s",
        options=tuple(options),
        linear_weights=WEIGHTS * sites,
        fixed_bytes=100,
        original_bytes=100 + 128 * sites,
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sites = draw(st.integers(1, 4))
    tied = draw(st.booleans())
    options = []
    for site in range(sites):
        tie = "t" if tied and site < 2 else ""
        options.append(option(f"s{site}", "keep", 128, 0.0, tie))
        for index in range(3):
            size = draw(st.integers(8, 100))
            loss = draw(st.floats(1e-6, 10.0))
            options.append(option(f"s{site}", f"int{index + 2}", size, loss, tie))
    if draw(st.booleans()):
        block = Option(
            site="block",
            candidate="drop",
            weights=0,
            stored_bytes=0,
            loss=draw(st.floats(1e-3, 5.0)),
            contains=tuple(f"s{site}" for site in range(sites) if not tied or sites <= 2),
        )
        kept = Option(site="block", candidate="keep", weights=0, stored_bytes=0, loss=0.0)
        options += [block, kept] if block.contains else []
    return problem_of(options, sites)


def all_plans(problem: Problem) -> list[tuple[float, int]]:
    """(loss, linear bytes) of every plan there is."""
    by_site: dict[str, list[Option]] = {}
    for item in problem.options:
        by_site.setdefault(item.site, []).append(item)
    linears = [site for site in by_site if site != "block"]
    found = []
    for block in by_site.get("block", [None]):
        gone = set(block.contains) if block else set()
        free = [site for site in linears if site not in gone]
        for chosen in itertools.product(*(by_site[site] for site in free)):
            tied = {item.candidate for item in chosen if item.tie}
            if len(tied) <= 1:
                loss = sum(item.loss for item in chosen) + (block.loss if block else 0.0)
                found.append((loss, sum(item.stored_bytes for item in chosen)))
    return found


@settings(max_examples=60, deadline=None)
@given(problem=problems(), bits=st.floats(1.5, 12.0))
def test_plan_is_the_best_of_all_plans(problem: Problem, bits: float) -> None:
    limit = bits * problem.linear_weights / 8
    reachable = [loss for loss, size in all_plans(problem) if size <= limit]
    if not reachable:
        with pytest.raises(BudgetError, match="smallest"):
            solve(problem, Budget(bits=bits))
        return
    plan = solve(problem, Budget(bits=bits))
    assert plan.bits_per_weight <= bits
    assert plan.loss <= min(reachable) * (1 + 1e-3) + 1e-9
    check_plan(plan, problem)


@settings(max_examples=30, deadline=None)
@given(problem=problems(), bits=st.floats(4.0, 8.0))
def test_more_budget_never_raises_the_loss(problem: Problem, bits: float) -> None:
    try:
        small = solve(problem, Budget(bits=bits))
    except BudgetError:
        return
    large = solve(problem, Budget(bits=bits * 1.5))
    assert large.loss <= small.loss * (1 + 1e-3) + 1e-9


def two_sites() -> Problem:
    sizes = {"keep": (128, 0.0), "int4": (40, 1.0), "int8": (70, 0.1)}
    options = [option(s, c, *sizes[c]) for s in ("a", "b") for c in sizes]
    return problem_of(options, 2)


def test_size_budget_counts_everything() -> None:
    plan = solve(two_sites(), Budget(size_bytes=100 + 111))
    assert plan.size_bytes == 100 + 70 + 40
    assert sorted(choice.candidate for choice in plan.choices.values()) == ["int4", "int8"]


def test_same_problem_same_plan() -> None:
    assert solve(two_sites(), Budget(bits=7.0)) == solve(two_sites(), Budget(bits=7.0))


def test_refusals_name_what_is_reachable() -> None:
    with pytest.raises(BudgetError, match=r"smallest plan has 5\.0000 bits"):
        solve(two_sites(), Budget(bits=4.0))
    with pytest.raises(BudgetError, match="smallest plan has 180 bytes"):
        solve(two_sites(), Budget(size_bytes=150))
    with pytest.raises(BudgetError, match="fits as it is"):
        solve(two_sites(), Budget(bits=16.0))
    with pytest.raises(BudgetError, match="fits as it is"):
        solve(two_sites(), Budget(ratio=1.0))


def test_uniform_plans_fit_and_come_best_first() -> None:
    plans = uniform_plans(two_sites(), Budget(bits=9.0))
    assert [plan.name for plan in plans] == ["uniform int8", "uniform int4"]
    assert [plan.name for plan in uniform_plans(two_sites(), Budget(bits=6.0))] == ["uniform int4"]


def edited(plan: Plan, **choices: str) -> Plan:
    made = {site: Choice(candidate=c, stored_bytes=0, loss=0.0) for site, c in choices.items()}
    return Plan(**{**plan.__dict__, "choices": {**plan.choices, **made}})


def test_an_edited_plan_is_recounted() -> None:
    plan = edited(solve(two_sites(), Budget(bits=9.0)), a="int4", b="int8")
    resolved = resolve_edited(plan, two_sites())
    assert resolved.size_bytes == 100 + 40 + 70
    assert resolved.loss == pytest.approx(1.1)


def test_wrong_plans_are_refused_by_name() -> None:
    plan = solve(two_sites(), Budget(bits=9.0))
    with pytest.raises(PlanError, match="names c"):
        check_plan(edited(plan, c="int4"), two_sites())
    without = Plan(**{**plan.__dict__, "choices": {"a": plan.choices["a"]}})
    with pytest.raises(PlanError, match="no choice for b"):
        check_plan(without, two_sites())
    other = Plan(**{**plan.__dict__, "fingerprint": "else"})
    with pytest.raises(PlanError, match="another model"):
        check_plan(other, two_sites())
    strange = edited(plan, a="int3")
    assert unbuilt(strange, two_sites()) == [("a", "int3")]
    with pytest.raises(PlanError, match="asks for int3 at a"):
        resolve_edited(strange, two_sites())
