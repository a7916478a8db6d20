"""What a set of choices adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockwright.plan.limits import file_bytes, ram_of
from blockwright.plan.program import site_order
from blockwright.types import Choice, Option, Plan, Problem, Workload


def plan_of(
    problem: Problem,
    chosen: Iterable[Option],
    *,
    budget: str,
    name: str = "plan",
    limits: Mapping[str, float] | None = None,
    workload: Workload | None = None,
) -> Plan:
    """The plan of chosen options, with its totals recounted.

    Memory is counted at the context of ``workload``, latency where a profile of it is known.
    """
    counted_at = workload or Workload()
    options = sorted(chosen, key=lambda option: site_order(option.site))
    latency_ns = latency_of(problem, options, counted_at)
    timing = problem.timing if latency_ns is not None else None
    linear_bytes = sum(option.stored_bytes for option in options if option.weights)
    return Plan(
        fingerprint=problem.fingerprint,
        statistics=problem.statistics,
        budget=budget,
        bits_per_weight=8 * linear_bytes / max(problem.linear_weights, 1),
        size_bytes=problem.fixed_bytes + sum(file_bytes(option) for option in options),
        loss=sum(option.loss for option in options) + loss_of_pairs(problem, options),
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
        ram_bytes=memory_of(problem, options, counted_at.context),
        latency_ns=latency_ns,
        speedup=timing.original_ns / max(latency_ns, 1) if timing and latency_ns else None,
        workload=counted_at.to_json(),
        profile=timing.profile if timing else "",
    )


def loss_of_pairs(problem: Problem, options: Iterable[Option]) -> float:
    """What choices cost together beside what each costs."""
    chosen = {(option.site, option.candidate) for option in options}
    return sum(
        pair.loss
        for pair in problem.pairs
        if chosen.issuperset(zip(pair.sites, pair.candidates, strict=True))
    )


def memory_of(problem: Problem, options: Iterable[Option], context: int) -> int | None:
    """Memory of the loaded model; None when a part of it is not known."""
    if problem.memory is None:
        return None
    parts = [ram_of(option, problem.memory, context) for option in options]
    known = [part for part in parts if part is not None]
    whole = len(known) == len(parts)
    return problem.memory.beside_sites(context) + sum(known) if whole else None


def latency_of(problem: Problem, options: Iterable[Option], workload: Workload) -> int | None:
    """Time of one forward; None when a part of it was not timed, or for another workload."""
    if problem.timing is None or problem.timing.workload != workload:
        return None
    parts = [option.latency_ns for option in options]
    known = [part for part in parts if part is not None]
    return problem.timing.fixed_ns + sum(known) if len(known) == len(parts) else None
