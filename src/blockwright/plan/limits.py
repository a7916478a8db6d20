"""Budgets as linear limits on what the chosen options cost: bytes in files, bytes in memory,
nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockwright.errors import BudgetError, PlanError
from blockwright.plan.profiled import timing_for
from blockwright.types import Budget, Memory, Option, Plan, Problem, Workload, cache_block

ROUNDING = 1e-12
"""Relative slack of a budget given as a fraction: a plan's own figures, read back, allow it."""


def _say_units(counted: int) -> str:
    return f"the smallest plan has {counted}; ask for that or more"


@dataclass(frozen=True)
class Limit:
    """The summed ``cost`` of the chosen options is at most ``bound``, in whole units."""

    name: str
    bound: int
    cost: Callable[[Option], int | None]
    """None: not known (a kernel that was not timed); such an option is not offered."""
    say_reachable: Callable[[int], str] = _say_units
    """What to ask for where no plan takes less than this sum."""
    original_has: str = ""
    """What the original has, where it keeps the limit as it is; else empty."""


def limits_on(problem: Problem, budget: Budget) -> list[Limit]:
    """The limits of a budget: size, memory, latency, those that are asked.

    Raises ``BudgetError`` for memory or latency that nothing is known about.
    """
    found = []
    if (budget.bits, budget.size_bytes, budget.ratio) != (None, None, None):
        found.append(limit_of(problem, budget))
    if budget.ram_bytes is not None:
        found.append(memory_limit(problem, budget.ram_bytes, budget.context))
    if budget.speedup is not None:
        found.append(latency_limit(problem, budget.speedup, budget.workload))
    return found


def limit_of(problem: Problem, budget: Budget) -> Limit:
    """The limit on the size: bits, bytes or ratio."""
    name = "bits" if budget.bits is not None else "size"
    bound = budget_bytes(problem, budget)
    if budget.bits is not None:
        kept = budget.bits >= original_bits(problem)
        had = f"{original_bits(problem):g} bits per weight"
    else:
        kept = bound + problem.fixed_bytes >= problem.original_bytes
        had = f"{problem.original_bytes} bytes"
    return Limit(
        name,
        bound,
        lambda option: cost_of(option, budget),
        lambda counted: (
            f"the smallest plan has {as_asked(problem, budget, counted)};"
            " ask for that or more, or offer smaller --candidates"
        ),
        had if kept else "",
    )


def memory_limit(problem: Problem, ram_bytes: int, context: int) -> Limit:
    """The limit on memory: what is beside the sites, and what the sites hold."""
    memory = known_memory(problem)
    beside = memory.beside_sites(context)
    original = beside + sum(option.resident_bytes or 0 for option in original_options(problem))
    return Limit(
        "ram",
        ram_bytes - beside,
        lambda option: ram_of(option, memory, context),
        lambda counted: (
            f"the smallest plan takes {counted + beside} bytes of memory at {context}"
            " tokens; ask for that or more, or offer smaller --candidates"
        ),
        f"{original} bytes of memory" if original <= ram_bytes else "",
    )


def latency_limit(problem: Problem, speedup: float, workload: Workload) -> Limit:
    """The limit on latency: the original's, predicted by the same profile, over ``speedup``."""
    timing = timing_for(problem, workload)
    original, fixed = timing.original_ns, timing.fixed_ns
    return Limit(
        "latency",
        math.floor(original / speedup * (1 + ROUNDING)) - fixed,
        lambda option: option.latency_ns,
        lambda counted: (
            "the fastest plan is predicted"
            f" {math.floor(1e4 * original / max(counted + fixed, 1)) / 1e4:.4f} times as fast;"
            " ask for that or less, or offer faster --candidates"
        ),
    )


def known_memory(problem: Problem) -> Memory:
    """The problem's figures on memory; ``BudgetError`` where there are none."""
    if problem.memory is None:
        reason = problem.memory_unknown or "the library was written before it was counted"
        raise BudgetError(
            f"--ram: the memory of {problem.model} is not known ({reason});"
            " run `blockwright fit` again, or leave --ram out"
        )
    return problem.memory


def ram_of(option: Option, memory: Memory, context: int) -> int | None:
    """Bytes of an option in memory; a dropped block or attention takes its cache along, and a
    format of a cache counts what it changes.
    """
    if option.resident_bytes is None:
        return None
    block = cache_block(option.site)
    if block and option.candidate != "keep":
        return memory.changed_by_cache(block, option.candidate, context)
    if option.cache:
        return option.resident_bytes - memory.freed_by_part(option.cache, context)
    freed = memory.freed_by_drop(option.site, context) if option.candidate == "drop" else 0
    return option.resident_bytes - freed


def original_options(problem: Problem) -> list[Option]:
    """``keep`` everywhere."""
    return [option for option in problem.options if option.candidate == "keep"]


def limits_of(budget: Budget) -> dict[str, float]:
    """The budget in figures, as a plan carries it."""
    names = ("bits", "size_bytes", "ratio", "ram_bytes", "speedup")
    named = {name: getattr(budget, name) for name in names}
    return {name: value for name, value in named.items() if value is not None}


def counts(option: Option, budget: Budget) -> bool:
    """Whether an option's bytes count against the size: under bits only the linears' do."""
    return budget.bits is None or option.weights > 0


def cost_of(option: Option, budget: Budget) -> int:
    """Bytes of an option that count against the size."""
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
    """By which limit a plan's totals are over, and how far; empty when they keep all.

    Raises ``PlanError`` for a limit that nothing is known about here.
    """
    totals = {
        "bits": plan.bits_per_weight,
        "size_bytes": plan.size_bytes,
        "ratio": plan.size_bytes / problem.original_bytes,
        "ram_bytes": plan.ram_bytes,
    }
    over = []
    for name, allowed in limits.items():
        if name == "speedup":
            over += _too_slow(plan, allowed)
            continue
        total = totals.get(name)
        if total is None:
            raise PlanError(f"the plan has a limit {name!r} that cannot be checked here; remove it")
        if total > allowed * (1 + ROUNDING):
            over.append(f"{total:.6g} {name}, over its limit of {allowed:.6g}")
    return ", ".join(over)


def _too_slow(plan: Plan, asked: float) -> list[str]:
    if plan.speedup is None:
        raise PlanError(
            "the plan has a limit 'speedup', and no machine profile times all it chooses;"
            " give --profile, or remove the limit"
        )
    if plan.speedup * (1 + ROUNDING) >= asked:
        return []
    return [f"time for a speedup of {plan.speedup:.6g}, below its limit of {asked:.6g}"]


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
