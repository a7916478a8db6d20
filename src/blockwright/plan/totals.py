"""What a set of choices adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockwright.plan.limits import file_bytes
from blockwright.plan.program import site_order
from blockwright.types import Choice, Option, Plan, Problem


def plan_of(
    problem: Problem,
    chosen: Iterable[Option],
    *,
    budget: str,
    name: str = "plan",
    limits: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of chosen options, with its totals recounted."""
    options = sorted(chosen, key=lambda option: site_order(option.site))
    linear_bytes = sum(option.stored_bytes for option in options if option.weights)
    return Plan(
        fingerprint=problem.fingerprint,
        statistics=problem.statistics,
        budget=budget,
        bits_per_weight=8 * linear_bytes / max(problem.linear_weights, 1),
        size_bytes=problem.fixed_bytes + sum(file_bytes(option) for option in options),
        loss=sum(option.loss for option in options),
        choices={
            option.site: Choice(
                candidate=option.candidate,
                stored_bytes=option.stored_bytes,
                loss=option.loss,
                key=option.key,
            )
            for option in options
        },
        name=name,
        limits=dict(limits or {}),
    )
