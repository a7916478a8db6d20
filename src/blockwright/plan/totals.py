"""What a set of choices adds up to."""

from __future__ import annotations

from collections.abc import Iterable

from blockwright.types import Choice, Option, Plan, Problem


def plan_of(problem: Problem, chosen: Iterable[Option], *, budget: str, name: str = "plan") -> Plan:
    """The plan of chosen options, with its totals recounted."""
    options = sorted(chosen, key=lambda option: option.site)
    linear_bytes = sum(option.stored_bytes for option in options if option.weights)
    return Plan(
        fingerprint=problem.fingerprint,
        statistics=problem.statistics,
        budget=budget,
        bits_per_weight=8 * linear_bytes / problem.linear_weights,
        size_bytes=problem.fixed_bytes + sum(option.stored_bytes for option in options),
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
    )
