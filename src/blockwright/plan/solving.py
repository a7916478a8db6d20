"""The plan of least predicted loss under a budget, and the frontier along budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blockwright.errors import BudgetError
from blockwright.plan.bound import smallest_cost
from blockwright.plan.limits import Limit, excess, limits_of, limits_on
from blockwright.plan.profiled import timing_for
from blockwright.plan.program import Program, build_program
from blockwright.plan.search import best_columns
from blockwright.plan.totals import plan_of
from blockwright.types import Budget, Plan, Problem


def solve(problem: Problem, budget: Budget) -> Plan:
    """The plan of least predicted loss under all limits of the budget; the same problem gives the
    same plan, whatever the order of its options.

    Of candidates with equal loss and cost at a site, ``keep`` comes first, then fewer file bytes,
    then the name.  Raises ``BudgetError`` when a limit is out of reach, alone or together with the
    others, or the original keeps them as it is.
    """
    limits = limits_on(problem, budget)
    program = build_program(problem, limits)
    check_reachable(budget, limits, program)
    taken = best_columns(program)
    if taken is None:
        raise BudgetError(f"budget {budget}: {reachable_together(limits, program)}")
    options = [option for place in taken for option in program.columns[place].options]
    return plan_of(
        problem,
        options,
        budget=str(budget),
        limits=limits_of(budget),
        workload=budget.workload,
    )


def check_possible(problem: Problem, budget: Budget) -> None:
    """Raise ``BudgetError`` where ``solve`` would; losses need not be known."""
    limits = limits_on(problem, budget)
    program = build_program(problem, limits)
    check_reachable(budget, limits, program)
    if len(limits) > 1 and best_columns(program) is None:
        raise BudgetError(f"budget {budget}: {reachable_together(limits, program)}")


def frontier(problem: Problem, budgets: Sequence[Budget]) -> list[Plan]:
    """Plans along budgets; those out of reach are left out.

    More room never raises the loss: where the solver's gap would let it, the plan of the smaller
    budget that limits the same stands again, under the larger one's name.
    """
    plans: list[Plan] = []
    for budget in budgets:
        try:
            plans.append(solve(problem, budget))
        except BudgetError:
            continue
    return [_best_allowed(problem, plan, plans) for plan in plans]


def _best_allowed(problem: Problem, plan: Plan, others: Sequence[Plan]) -> Plan:
    alike = [other for other in others if other.limits.keys() == plan.limits.keys()]
    allowed = [other for other in alike if not excess(problem, other, plan.limits)]
    best = min([plan, *allowed], key=lambda other: other.loss)
    return replace(best, budget=plan.budget, limits=plan.limits)


def check_reachable(budget: Budget, limits: Sequence[Limit], program: Program) -> None:
    """Raise ``BudgetError`` for a limit that nothing meets, or limits that the original meets."""
    for place, limit in enumerate(limits):
        smallest = smallest_cost(program, place)
        if smallest > limit.bound:
            raise BudgetError(f"budget {budget}: {limit.say_reachable(smallest)}")
    if all(limit.original_has for limit in limits):
        had = " and ".join(limit.original_has for limit in limits)
        raise BudgetError(
            f"budget {budget}: the original has {had} and fits as it is; ask for less"
        )


def reachable_together(limits: Sequence[Limit], program: Program) -> str:
    """What to ask for where every limit can be kept, but not all at once."""
    for place in reversed(range(len(limits))):
        least = least_beside_others(program, place)
        if least is not None and len(limits) > 1:
            return (
                "no plan keeps all at once; with the others kept,"
                f" {limits[place].say_reachable(least)}"
            )
    return "no plan keeps it; ask for more"


def least_beside_others(program: Program, place: int) -> int | None:
    """The least that a plan takes of one limit while it keeps the others; None: none keeps them."""
    others = replace(
        program,
        loss=program.cost[place].astype(float),
        cost=np.delete(program.cost, place, axis=0),
        bound=np.delete(program.bound, place),
    )
    taken = best_columns(others)
    return None if taken is None else int(program.cost[place, taken].sum())


def most_speedup(problem: Problem, budget: Budget) -> float | None:
    """The largest speedup that a plan is predicted to have while it keeps the other limits; None
    when no plan keeps them.
    """
    limits = limits_on(problem, budget)
    place = next(place for place, limit in enumerate(limits) if limit.name == "latency")
    least = least_beside_others(build_program(problem, limits), place)
    timing = timing_for(problem, budget.workload)
    return None if least is None else timing.original_ns / max(least + timing.fixed_ns, 1)
