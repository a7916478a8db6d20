"""Budgets as linear limits on what the chosen options cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockwright.errors import PlanError
from blockwright.types import Budget, Option, Plan, Problem

ROUNDING = 1e-12
"""Relative slack of a budget given as a fraction: a plan's own figures, read back, allow it."""


@dataclass(frozen=True)
class Limit:
    """The summed ``cost`` of the chosen options is at most ``bound`` (bytes)."""

    name: str
    bound: int
    cost: Callable[[Option], int]


def limit_of(problem: Problem, budget: Budget) -> Limit:
    """A budget as a limit; one budget gives one, and the program takes several."""
    name = "bits" if budget.bits is not None else "size"
    return Limit(name, budget_bytes(problem, budget), lambda option: cost_of(option, budget))


def limits_of(budget: Budget) -> dict[str, float]:
    """The budget in figures, as a plan carries it."""
    named = {"bits": budget.bits, "size_bytes": budget.size_bytes, "ratio": budget.ratio}
    return {name: value for name, value in named.items() if value is not None}


def counts(option: Option, budget: Budget) -> bool:
    """Whether an option's bytes count against the budget: under bits only the linears' do."""
    return budget.bits is None or option.weights > 0


def cost_of(option: Option, budget: Budget) -> int:
    """Bytes of an option that count against the budget."""
    if not counts(option, budget):
        return 0
    return option.stored_bytes if budget.bits is not None else file_bytes(option)


def file_bytes(option: Option) -> int:
    """What an option adds to the size of the files."""
    return option.stored_bytes + option.other_bytes


def budget_bytes(problem: Problem, budget: Budget) -> int:
    """Largest sum of the bytes of all options that count."""
    if budget.bits is not None:
        if problem.linear_weights <= 0:
            raise PlanError(f"{problem.model} has no linear weights; give --size or --ratio")
        return math.floor(budget.bits * problem.linear_weights / 8 * (1 + ROUNDING))
    if budget.size_bytes is not None:
        return budget.size_bytes - problem.fixed_bytes
    size = math.floor((budget.ratio or 0.0) * problem.original_bytes * (1 + ROUNDING))
    return size - problem.fixed_bytes


def excess(problem: Problem, plan: Plan, limits: Mapping[str, float]) -> str:
    """By which limit a plan's totals are over, and how far; empty when they keep all."""
    totals = {
        "bits": plan.bits_per_weight,
        "size_bytes": plan.size_bytes,
        "ratio": plan.size_bytes / problem.original_bytes,
    }
    over = [
        f"{totals[name]:.6g} {name}, over its limit of {allowed:.6g}"
        for name, allowed in limits.items()
        if totals[name] > allowed * (1 + ROUNDING)
    ]
    return ", ".join(over)


def original_bits(problem: Problem) -> float:
    """Bits per weight of the original's linears."""
    kept = [o for o in problem.options if o.candidate == "keep" and o.weights]
    return 8 * sum(option.stored_bytes for option in kept) / problem.linear_weights


def as_asked(problem: Problem, budget: Budget, counted_bytes: int) -> str:
    """Bytes in the unit of the budget, rounded up: asking for what is printed is enough."""
    if budget.bits is not None:
        bits = math.ceil(8e4 * counted_bytes / problem.linear_weights) / 1e4
        return f"{bits:.4f} bits per weight"
    total = counted_bytes + problem.fixed_bytes
    if budget.ratio is not None:
        return f"{math.ceil(1e4 * total / problem.original_bytes) / 1e4:.4f} of the original's size"
    return f"{total} bytes"
