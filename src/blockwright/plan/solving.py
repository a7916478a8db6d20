"""The plan of least predicted loss under a budget, and the frontier along budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blockwright.errors import BudgetError
from blockwright.plan.bound import smallest_cost
from blockwright.plan.limits import (
    as_asked,
    budget_bytes,
    excess,
    limit_of,
    limits_of,
    original_bits,
)
from blockwright.plan.program import Program, build_program
from blockwright.plan.search import best_columns
from blockwright.plan.totals import plan_of
from blockwright.types import Budget, Plan, Problem


def solve(problem: Problem, budget: Budget) -> Plan:
    """The plan of least predicted loss under the budget; the same problem gives the same plan,
    whatever the order of its options.

    Of candidates with equal loss and cost at a site, ``keep`` comes first, then fewer file bytes,
    then the name.  Raises ``BudgetError`` when the smallest plan is too large, or the original fits
    as it is.
    """
    program = build_program(problem, [limit_of(problem, budget)])
    check_reachable(problem, budget, program)
    taken = best_columns(program)
    if taken is None:
        raise BudgetError(f"budget {budget}: no plan keeps it; ask for more")
    options = [option for place in taken for option in program.columns[place].options]
    return plan_of(problem, options, budget=str(budget), limits=limits_of(budget))


def check_possible(problem: Problem, budget: Budget) -> None:
    """Raise ``BudgetError`` where ``solve`` would for the budget alone."""
    check_reachable(problem, budget, build_program(problem, [limit_of(problem, budget)]))


def frontier(problem: Problem, budgets: Sequence[Budget]) -> list[Plan]:
    """Plans along budgets; those out of reach are left out.

    More room never raises the loss: where the solver's gap would let it, the plan of the smaller
    budget stands again, under the larger one's name.
    """
    plans: list[Plan] = []
    for budget in budgets:
        try:
            plans.append(solve(problem, budget))
        except BudgetError:
            continue
    return [_best_allowed(problem, plan, plans) for plan in plans]


def _best_allowed(problem: Problem, plan: Plan, others: Sequence[Plan]) -> Plan:
    allowed = [other for other in others if not excess(problem, other, plan.limits)]
    best = min([plan, *allowed], key=lambda other: other.loss)
    return replace(best, budget=plan.budget, limits=plan.limits)


def check_reachable(problem: Problem, budget: Budget, program: Program) -> None:
    """Raise ``BudgetError`` for a budget that nothing, or the original itself, meets."""
    limit = budget_bytes(problem, budget)
    smallest = smallest_cost(program, 0)
    if smallest > limit:
        raise BudgetError(
            f"budget {budget}: the smallest plan has {as_asked(problem, budget, smallest)};"
            " ask for that or more, or offer smaller --candidates"
        )
    if budget.bits is not None:
        above = budget.bits >= original_bits(problem)
        had = f"{original_bits(problem):g} bits per weight"
    else:
        above = limit + problem.fixed_bytes >= problem.original_bytes
        had = f"{problem.original_bytes} bytes"
    if above:
        raise BudgetError(
            f"budget {budget}: the original has {had} and fits as it is; ask for less"
        )
