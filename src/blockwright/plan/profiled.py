"""A machine profile applied to a problem: how long every option takes."""

from __future__ import annotations

from dataclasses import replace

from blockwright.errors import BudgetError, ProfileError
from blockwright.types import Option, Problem, Profile, Timing, Workload


def with_profile(problem: Problem, profile: Profile) -> Problem:
    """The problem with the time of every option, ``None`` where its kernel was not timed.

    ``ProfileError`` when the profile is of another model: it lacks a time of what is kept.
    """
    options = tuple(replace(o, latency_ns=_time_of(o, profile)) for o in problem.options)
    kept = [option for option in options if option.candidate == "keep"]
    for option in kept:
        if option.latency_ns is None:
            wanted = ", ".join(option.work) or "any work"
            raise ProfileError(
                f"the profile of {profile.model} has no time for {wanted} of {option.site}:"
                f" it is of another model than {problem.model}; measure one with"
                " `blockwright profile`"
            )
    fixed = profile.outside_ns + sum(profile.blocks_ns.values())
    timing = Timing(
        profile=profile.digest,
        workload=profile.workload,
        fixed_ns=fixed,
        original_ns=fixed
        + profile.original_extra_ns
        + sum(option.latency_ns or 0 for option in kept),
    )
    return replace(problem, options=options, timing=timing)


def timing_for(problem: Problem, workload: Workload) -> Timing:
    """The problem's timing; ``BudgetError`` where there is none for this workload."""
    if problem.timing is None:
        raise BudgetError(
            f"--speedup: nothing was timed for {problem.model}; give --profile with a file of"
            " `blockwright profile`"
        )
    if problem.timing.workload != workload:
        raise BudgetError(
            f"--speedup asks for {workload}, and the profile is of {problem.timing.workload};"
            " give --profile with one that was measured so"
        )
    return problem.timing


def _time_of(option: Option, profile: Profile) -> int | None:
    if option.candidate == "drop":
        return -profile.blocks_ns.get(option.site, 0)  # of a part: only its products are counted
    if option.candidate == "keep" and not option.work:
        return 0  # a block or a group that is left to its parts
    return profile.time_of(option.work) if option.work else None
