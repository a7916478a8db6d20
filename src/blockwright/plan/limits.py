"""Budgets as bytes."""

from __future__ import annotations

from blockwright.types import Budget, Option, Problem


def counts(option: Option, budget: Budget) -> bool:
    """Whether an option's bytes count against the budget: under bits only the linears' do."""
    return budget.bits is None or option.weights > 0


def budget_bytes(problem: Problem, budget: Budget) -> int:
    """Largest sum of the stored bytes of all options that count."""
    if budget.bits is not None:
        return int(budget.bits * problem.linear_weights / 8)
    if budget.size_bytes is not None:
        return budget.size_bytes - problem.fixed_bytes
    return int((budget.ratio or 0.0) * problem.original_bytes) - problem.fixed_bytes


def original_bits(problem: Problem) -> float:
    """Bits per weight of the original's linears."""
    kept = [o for o in problem.options if o.candidate == "keep" and o.weights]
    return 8 * sum(option.stored_bytes for option in kept) / problem.linear_weights
