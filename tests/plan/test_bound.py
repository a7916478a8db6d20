"""The Lagrangian bound against every plan there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.plan.bound import relax, smallest_cost
from blockwright.plan.limits import limit_of
from blockwright.plan.program import build_program
from blockwright.types import Budget, Problem
from tests.plan.problems import all_choices
from tests.plan.test_optimum import problems, tried

BUDGET = Budget(size_bytes=500)


@tried
@given(problems(), st.sampled_from([0.0, 1e-5, 1e-3, 0.03, 1.0, 50.0]))
def test_no_plan_beats_the_bound_or_a_columns_slack(problem: Problem, price: float) -> None:
    limit = limit_of(problem, BUDGET)
    program = build_program(problem, [limit])
    relaxed = relax(program, np.array([price]))
    priced = [
        (
            sum(o.loss + price * (limit.cost(o) or 0) for o in chosen) - price * limit.bound,
            {(o.site, o.candidate) for o in chosen},
        )
        for chosen in all_choices(problem)
    ]
    assert relaxed.bound == pytest.approx(min(value for value, _ in priced), abs=1e-6)
    for column, slack in zip(program.columns, relaxed.slack, strict=True):
        names = {(o.site, o.candidate) for o in column.options}
        with_it = [value for value, chosen in priced if names and names <= chosen]
        if with_it:
            assert relaxed.bound + slack == pytest.approx(min(with_it), abs=1e-6)
    taken = {
        (o.site, o.candidate) for place in relaxed.taken for o in program.columns[place].options
    }
    assert taken in [chosen for _, chosen in priced]


@tried
@given(problems())
def test_the_smallest_cost_is_that_of_the_smallest_plan(problem: Problem) -> None:
    limit = limit_of(problem, BUDGET)
    sizes = [sum(limit.cost(o) or 0 for o in chosen) for chosen in all_choices(problem)]
    assert smallest_cost(build_program(problem, [limit]), 0) == min(sizes)
