"""Uniform plans: the rivals of the mixed one."""

from __future__ import annotations

from dataclasses import replace

from blockwright.plan import best_uniform, solve, uniform_plans
from blockwright.types import Budget, Option, Problem
from tests.plan.problems import option, problem_of, realistic_problem

LINEAR = {"keep": (200, 0.0), "int8": (100, 1.0), "int4": (50, 4.0), "int2": (25, 20.0)}
TABLE = {"keep": (400, 0.0), "int8": (200, 3.0)}


def linear(site: str, *candidates: str) -> list[Option]:
    return [option(site, name, *LINEAR[name]) for name in ("keep", *candidates)]


def with_tables(*linears: Option) -> Problem:
    tables = [
        option(site, name, *TABLE[name], weights=0) for site in ("embed", "head") for name in TABLE
    ]
    return problem_of([*linears, *tables])


def names(problem: Problem, budget: Budget) -> list[str]:
    return [plan.name for plan in uniform_plans(problem, budget)]


def test_under_bits_the_fitting_candidates_come_least_loss_first_and_tables_keep_theirs() -> None:
    problem = with_tables(
        *linear("a", "int2", "int4", "int8"), *linear("b", "int2", "int4", "int8")
    )
    assert names(problem, Budget(bits=4.0)) == ["uniform int4", "uniform int2"]
    for plan in uniform_plans(problem, Budget(bits=4.0)):
        assert plan.choices["embed"].candidate == plan.choices["head"].candidate == "keep"
    assert names(problem, Budget(bits=1.9)) == []
    assert best_uniform(problem, Budget(bits=1.9)) is None


def test_under_bytes_the_tables_candidates_are_tried_as_well() -> None:
    problem = with_tables(*linear("a", "int4", "int8"), *linear("b", "int4", "int8"))
    found = uniform_plans(problem, Budget(size_bytes=100 + 800 + 100))
    assert [(plan.name, plan.size_bytes, plan.loss) for plan in found] == [
        ("uniform int8, tables int8", 700, 8.0),
        ("uniform int4", 1000, 8.0),
        ("uniform int4, tables int8", 600, 14.0),
    ]


def test_a_candidate_missing_at_one_site_is_not_uniform_unless_nothing_is_offered_there() -> None:
    some = [*linear("a", "int4", "int8"), *linear("b", "int4")]
    assert names(problem_of(some), Budget(bits=9)) == ["uniform int4"]
    none = [*linear("a", "int4"), *linear("odd")]
    (plan,) = uniform_plans(problem_of(none), Budget(bits=10))
    assert plan.choices["odd"].candidate == "keep"


def test_blocks_stay_and_groups_leave_the_choice_to_their_parts() -> None:
    options = [
        *linear("layers.0.q", "int4"),
        *linear("layers.0.k", "int4"),
        option("layers.0", "keep", 0, 0.0, weights=0),
        option("layers.0", "drop", 0, 9.0, weights=0, contains=("layers.0.q", "layers.0.k")),
    ]
    (plan,) = uniform_plans(problem_of(options), Budget(bits=4))
    assert {site: choice.candidate for site, choice in plan.choices.items()} == {
        "layers.0": "keep",
        "layers.0.k": "int4",
        "layers.0.q": "int4",
    }


def test_a_candidate_of_groups_stands_there_and_the_rest_of_its_chain_elsewhere() -> None:
    def scaled(group: str, *members: str) -> list[Option]:
        held = option(group, "int4:awq>gptq", 90, 3.0, weights=200, contains=members)
        return [option(group, "keep", 0, 0.0, weights=0), held]

    def plain(site: str) -> list[Option]:
        return [option(site, "keep", 200, 0.0), option(site, "int4:gptq", 50, 4.0)]

    linears = [item for site in ("q", "k", "o") for item in plain(site)]
    problem = problem_of([*linears, *scaled("{q,k}", "q", "k")])
    plans = {plan.name: plan for plan in uniform_plans(problem, Budget(bits=9))}
    found = plans["uniform int4:awq>gptq"]
    assert {site: choice.candidate for site, choice in found.choices.items()} == {
        "o": "int4:gptq",
        "{q,k}": "int4:awq>gptq",
    }
    assert found.loss == 7.0
    assert set(plans["uniform int4:gptq"].choices) == {"q", "k", "o", "{q,k}"}
    awq_alone = [replace(o, candidate=o.candidate.replace(">gptq", "")) for o in problem.options]
    without = replace(problem, options=tuple(awq_alone))
    assert names(without, Budget(bits=9)) == ["uniform int4:gptq"]


def test_the_mixed_plan_is_never_predicted_worse_than_a_uniform_one() -> None:
    problem = realistic_problem(sites=25, candidates=9, seed=7)
    for bits in (2.6, 3.4, 4.5, 6.0):
        rival = best_uniform(problem, Budget(bits=bits))
        assert rival is not None
        assert solve(problem, Budget(bits=bits)).loss <= rival.loss * (1 + 1e-6)
