"""What other budgets would cost: predicted from the problem alone."""

from __future__ import annotations

import math

from blockwright.plan import frontier, uniform_plans
from blockwright.plan.limits import file_bytes
from blockwright.types import Budget, Option, Plan, Problem
from blockwright.types.report import PredictedPoint

BUDGETS = 12
"""Budgets along the frontier, from the smallest plan to the largest candidate everywhere."""


def predicted_points(
    problem: Problem, plan: Plan, budget: Budget | None
) -> tuple[PredictedPoint, ...]:
    """The frontier, the given plan's own budget on it, and the best uniform plans; smallest first.

    Budgets are in bits or in bytes, as ``budget`` is.
    """
    in_bits = budget is None or budget.bits is not None
    budgets = _budgets(problem, in_bits)
    if budget is not None:
        budgets.append(budget)
    mixed = {_costs(point): point for point in frontier(problem, budgets)}
    loosest = Budget(bits=1e3) if in_bits else Budget(size_bytes=1 << 62)
    uniform = _undominated(uniform_plans(problem, loosest))
    points = [_point(item, f"best mix, {item.bits_per_weight:.2f} bits") for item in mixed.values()]
    points += [_point(item, item.name) for item in uniform]
    return tuple(sorted(points, key=lambda point: (point.uniform, point.size_bytes, point.name)))


def _budgets(problem: Problem, in_bits: bool) -> list[Budget]:
    """Evenly spaced, rounded up so that the first can be reached."""
    smallest, largest = 0, 0
    sites: dict[str, list[Option]] = {}
    for option in problem.options:
        if not option.contains and (option.weights or not in_bits):
            sites.setdefault(option.site, []).append(option)
    for offered in sites.values():
        built = [option for option in offered if option.key] or offered
        smallest += min(map(file_bytes, built))
        largest += max(map(file_bytes, built))
    steps = [smallest + (largest - smallest) * i / (BUDGETS - 1) for i in range(BUDGETS)]
    if not in_bits:
        return [Budget(size_bytes=problem.fixed_bytes + math.ceil(step)) for step in steps]
    weights = max(problem.linear_weights, 1)
    return [Budget(bits=max(math.ceil(8e4 * step / weights), 1) / 1e4) for step in steps]


def _costs(plan: Plan) -> tuple[int, float]:
    return plan.size_bytes, plan.loss


def _undominated(plans: list[Plan]) -> list[Plan]:
    """Those that no other beats in both size and loss."""
    found: list[Plan] = []
    for plan in sorted(plans, key=_costs):
        if not found or plan.loss < found[-1].loss:
            found.append(plan)
    return found


def _point(plan: Plan, name: str) -> PredictedPoint:
    return PredictedPoint(
        name=name,
        uniform=plan.name.startswith("uniform "),
        bits_per_weight=plan.bits_per_weight,
        size_bytes=plan.size_bytes,
        predicted_loss=plan.loss,
    )
