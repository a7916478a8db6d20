"""The plan as a mixed-integer program over sites x candidates (HiGHS, stopped by gap).

One binary per tie and candidate.  Minimise the sum of predicted losses, one candidate per tie,
under the budget; an option that contains sites (a dropped block) takes the place of theirs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from blockwright.errors import BudgetError, PlanError
from blockwright.plan.limits import budget_bytes, counts, original_bits
from blockwright.plan.totals import plan_of
from blockwright.types import Budget, Option, Plan, Problem

RELATIVE_GAP = 1e-4
"""A plan's predicted loss is within this fraction of the best possible one."""
OBJECTIVE_SCALE = 1e4
TOLERANCE_RETRIES = 8


@dataclass(frozen=True)
class Column:
    """One binary: the options that are chosen together."""

    options: tuple[Option, ...]

    @property
    def loss(self) -> float:
        return sum(option.loss for option in self.options)

    def bytes_under(self, budget: Budget) -> int:
        return sum(option.stored_bytes for option in self.options if counts(option, budget))

    @property
    def order(self) -> tuple[str, str]:
        """Position among the columns: makes ties between equal plans fall the same way."""
        return self.options[0].site, self.options[0].candidate


def solve(problem: Problem, budget: Budget) -> Plan:
    """The plan of least predicted loss under the budget.

    Raises ``BudgetError`` when the smallest plan is too large, or the original fits as it is.
    """
    columns = columns_of(problem)
    check_reachable(problem, budget, columns)
    taken = _solve_columns(columns, budget_bytes(problem, budget), budget)
    options = [option for column in taken for option in column.options]
    return plan_of(problem, options, budget=str(budget))


def frontier(problem: Problem, budgets: Sequence[Budget]) -> list[Plan]:
    """Plans along budgets; those out of reach are left out."""
    plans = []
    for budget in budgets:
        try:
            plans.append(solve(problem, budget))
        except BudgetError:
            continue
    return plans


def columns_of(problem: Problem) -> list[Column]:
    """Options merged by tie; a candidate that a tied site lacks is offered to none of them."""
    by_choice: dict[tuple[str, str], list[Option]] = defaultdict(list)
    sites: dict[str, set[str]] = defaultdict(set)
    for option in problem.options:
        unit = option.tie or option.site
        by_choice[unit, option.candidate].append(option)
        sites[unit].add(option.site)
    whole = [
        Column(tuple(sorted(options, key=lambda option: option.site)))
        for (unit, _), options in by_choice.items()
        if len(options) == len(sites[unit])
    ]
    return sorted(whole, key=lambda column: column.order)


def check_reachable(problem: Problem, budget: Budget, columns: Sequence[Column]) -> None:
    """Raise ``BudgetError`` for a budget that nothing, or the original itself, meets."""
    limit = budget_bytes(problem, budget)
    smallest = sum(column.bytes_under(budget) for column in _smallest(columns, budget))
    if smallest > limit:
        raise BudgetError(
            f"budget {budget}: the smallest plan has {_as_asked(problem, budget, smallest)};"
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


def _as_asked(problem: Problem, budget: Budget, counted_bytes: int) -> str:
    if budget.bits is not None:
        return f"{8 * counted_bytes / problem.linear_weights:.4f} bits per weight"
    total = counted_bytes + problem.fixed_bytes
    if budget.ratio is not None:
        return f"{total / problem.original_bytes:.4f} of the original's size"
    return f"{total} bytes"


def _smallest(columns: Sequence[Column], budget: Budget) -> list[Column]:
    """The smallest plan, containers included where they are smaller than what they hold."""
    best: dict[str, Column] = {}
    for column in columns:
        for option in column.options:
            held = best.get(option.site)
            if held is None or column.bytes_under(budget) < held.bytes_under(budget):
                best[option.site] = column
    gone = {
        site
        for column in columns
        for option in column.options
        if option.contains and best[option.site] is column
        for site in option.contains
    }
    unique = {id(column): column for site, column in best.items() if site not in gone}
    return list(unique.values())


def _solve_columns(columns: Sequence[Column], limit: int, budget: Budget) -> list[Column]:
    """The columns taken; the solver keeps limits within a tolerance: if over, it is asked again"""
    bound = limit
    for _ in range(TOLERANCE_RETRIES):
        taken = _run_solver(columns, bound, budget)
        over = sum(column.bytes_under(budget) for column in taken) - limit
        if over <= 0:
            return taken
        bound -= 2 * over
    raise PlanError(f"the solver's plan stays over {budget}; report this")


def _run_solver(columns: Sequence[Column], limit: int, budget: Budget) -> list[Column]:
    loss = np.array([column.loss for column in columns])
    size = np.array([column.bytes_under(budget) for column in columns], dtype=float)
    scale = OBJECTIVE_SCALE / max(float(loss.max()), np.finfo(float).tiny)
    weight = max(float(limit), 1.0)
    with printing_discarded():
        result = milp(
            loss * scale,
            constraints=[
                LinearConstraint(_choice_rows(columns), 1, 1),
                LinearConstraint(csr_matrix(size[None] / weight), -np.inf, limit / weight),
            ],
            integrality=np.ones(len(columns), dtype=np.int64),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": RELATIVE_GAP},
        )
    if result.x is None:
        raise PlanError(f"no plan found under {budget}: {result.message}")
    return [column for column, x in zip(columns, result.x, strict=True) if x > 0.5]


@contextmanager
def printing_discarded() -> Iterator[None]:
    """HiGHS prints remarks to the process's stdout, where results belong; they are dropped."""
    c_library = ctypes.CDLL(None)
    sys.stdout.flush()
    c_library.fflush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
        c_library.fflush(None)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _choice_rows(columns: Sequence[Column]) -> csr_matrix:
    """One row per site: its own columns and those that contain it sum to one."""
    index: dict[str, int] = {}
    for column in columns:
        for option in column.options:
            index.setdefault(option.site, len(index))
    entries: Mapping[tuple[int, int], float] = {
        (index[site], position): 1.0
        for position, column in enumerate(columns)
        for option in column.options
        for site in (option.site, *option.contains)
        if site in index
    }
    places = np.array(list(entries), dtype=int).reshape(-1, 2)
    values = np.fromiter(entries.values(), dtype=float)
    return csr_matrix((values, (places[:, 0], places[:, 1])), shape=(len(index), len(columns)))
