"""Uniform plans: one candidate everywhere, the rival of every mixed plan."""

from __future__ import annotations

from blockwright.plan.limits import budget_bytes, counts
from blockwright.plan.solving import Column, columns_of
from blockwright.plan.totals import plan_of
from blockwright.types import Budget, Option, Plan, Problem


def uniform_plans(problem: Problem, budget: Budget) -> list[Plan]:
    """Plans with one candidate at all linears, those that fit, least predicted loss first.

    Tables keep their weights where that fits, else take the candidate of least loss that does.
    """
    columns = [column for column in columns_of(problem) if not column.options[0].contains]
    linears = [column for column in columns if column.options[0].weights]
    tables = [column for column in columns if not column.options[0].weights]
    everywhere = {site for column in linears for site in sites_of(column)}
    limit = budget_bytes(problem, budget)
    plans = []
    for candidate in sorted({column.options[0].candidate for column in linears} - {"keep"}):
        chosen = [o for c in linears if c.options[0].candidate == candidate for o in c.options]
        if {option.site for option in chosen} != everywhere:
            continue
        room = limit - sum(option.stored_bytes for option in chosen if counts(option, budget))
        rest = _tables_within(tables, room, budget)
        if room >= 0 and rest is not None:
            name = f"uniform {candidate}"
            plans.append(plan_of(problem, [*chosen, *rest], budget=str(budget), name=name))
    return sorted(plans, key=lambda plan: (plan.loss, plan.name))


def sites_of(column: Column) -> set[str]:
    """Sites that a column decides."""
    return {option.site for option in column.options}


def _tables_within(tables: list[Column], room: int, budget: Budget) -> list[Option] | None:
    """One option per table: kept while there is room, else the smallest loss that fits."""
    by_site: dict[str, list[Option]] = {}
    for column in tables:
        for option in column.options:
            by_site.setdefault(option.site, []).append(option)
    chosen = []
    for site in sorted(by_site):
        fitting = [o for o in by_site[site] if not counts(o, budget) or o.stored_bytes <= room]
        if not fitting:
            return None
        best = min(fitting, key=lambda option: (option.loss, option.candidate))
        room -= best.stored_bytes if counts(best, budget) else 0
        chosen.append(best)
    return chosen
