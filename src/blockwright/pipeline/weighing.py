"""What every option weighs beside its file bytes: memory once loaded, and time on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from blockwright.errors import ModelError, ProfileError
from blockwright.machine import (
    check_workload,
    count_memory,
    describe_machine,
    measure_profile,
    profile_inputs,
    works_of,
)
from blockwright.pipeline.attending import policies_on_offer
from blockwright.pipeline.caching import formats_on_offer
from blockwright.pipeline.narrowing import narrower_works, resized_sites
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.pipeline.posing import declared_problem
from blockwright.plan import check_possible, with_profile, workload_of
from blockwright.registry import resolve
from blockwright.types import (
    DROP,
    KEEP,
    Candidate,
    FuseFormat,
    Memory,
    Option,
    PackedFormat,
    Plan,
    Problem,
    Profile,
    Site,
    WidthFormat,
    Workload,
    cache_block,
    policy_block,
)


@dataclass(frozen=True)
class Weighed:
    """A problem with memory and time, and what the user must know about them."""

    problem: Problem
    notes: tuple[str, ...] = ()


def check_limits(run: Run, *, timed: bool = True) -> None:
    """Refuse at once what the long part would end in: ``BudgetError`` for limits that no plan
    meets, ``ProfileError`` for a profile or a workload that cannot be used, ``ModelError`` for a
    model whose memory cannot be counted.

    With blocks on offer to be dropped nothing is known of the limits beforehand; a limit on speed
    is tried against the machine's profile where ``timed``.
    """
    check_workloads(run)
    budget = run.request.budget
    if budget is not None and not timed:
        budget = budget.without_speedup()
    if budget is None or run.drops_blocks:
        return
    problem = declared_problem(run)
    if budget.ram_bytes is not None or budget.speedup is not None:
        problem = _weighed(run, problem, timed=timed).problem
    check_possible(problem, budget)


def check_workloads(run: Run) -> None:
    """``check_limits`` for what does not depend on the candidates."""
    workload, budget = wanted_workload(run), run.request.budget
    if workload is not None:
        check_workload(run.skeleton, workload)
        if run.request.profile is not None:
            check_profile(Profile.read(run.request.profile), run, workload)
    if budget is not None and budget.ram_bytes is not None:
        count_memory(run.skeleton, formats_on_offer(run))


def weigh(run: Run, problem: Problem) -> Weighed:
    """Give the options their memory, and under a limit on speed their time; the library keeps the
    problem so.
    """
    weighed = _weighed(run, problem)
    run.library.write_problem(weighed.problem)
    return weighed


def _weighed(run: Run, problem: Problem, *, timed: bool = True) -> Weighed:
    sites = by_id(run.skeleton)
    options = tuple(weigh_option(run, sites, option) for option in problem.options)
    memory, reason = _memory_of(run)
    weighed = replace(problem, options=options, memory=memory, memory_unknown=reason)
    workload = wanted_workload(run) if timed else None
    if workload is None:
        return Weighed(weighed)
    profile, notes = find_profile(run, weighed, workload)
    return Weighed(with_profile(weighed, profile), (*notes, *left_out(weighed, profile)))


def weigh_option(run: Run, sites: Mapping[str, Site], option: Option) -> Option:
    """The option with its resident bytes and the names of its works; a KV cache weighs by the
    context, see ``Memory``.
    """
    if cache_block(option.site) or policy_block(option.site):
        return replace(option, resident_bytes=0)
    candidate = Candidate.parse(option.candidate)
    format = resolve(candidate)[0]
    if format.name == str(DROP):
        block = sites[option.site].block if option.site in sites else None
        beside = option.other_bytes if block is None else -run.skeleton.bytes_beside_sites(block)
        return replace(option, resident_bytes=beside)
    if isinstance(format, WidthFormat):
        return replace(option, work=narrower_works(run, option))
    if isinstance(format, FuseFormat):
        format = format.values or resolve(KEEP)[0]
    members = [sites[name] for name in option.contains or (option.site,) if name in sites]
    members = [site for site in members if site.parameter]
    if isinstance(format, PackedFormat):
        device = run.request.device
        resident = sum(format.resident_bytes(site.shape, device) for site in members)
    else:
        resident = sum(map(run.skeleton.dense_bytes, members))
    work = tuple(name for site in members for name in works_of(site, format.name))
    return replace(option, resident_bytes=resident, work=work)


def _memory_of(run: Run) -> tuple[Memory | None, str]:
    """Memory beside the sites, or why it is not known; an error where it was asked for."""
    try:
        return count_memory(run.skeleton, formats_on_offer(run)), ""
    except ModelError as error:
        budget = run.request.budget
        if budget is not None and budget.ram_bytes is not None:
            raise
        return None, str(error)


def wanted_workload(run: Run) -> Workload | None:
    """What latency is needed of; None when nothing asks for it."""
    budget, plan = run.request.budget, run.edited
    if plan is not None:
        asked = "speedup" in plan.limits or run.request.profile is not None
        return workload_of(plan) if asked else None
    if budget is None or (budget.speedup is None and run.request.profile is None):
        return None
    return budget.workload


def find_profile(run: Run, problem: Problem, workload: Workload) -> tuple[Profile, tuple[str, ...]]:
    """The profile file that was given; else the plan's own, or the library's; else it is measured
    once and kept in the library.
    """
    if run.request.profile is not None:
        profile = Profile.read(run.request.profile)
        check_profile(profile, run, workload)
        keep_profile(run, profile)
        return profile, ()
    found = profile_of(run, run.edited) if run.edited is not None else None
    if found is not None:
        return found, ()
    formats, resized = formats_of(problem), resized_sites(run)
    policies = sorted({text for offer in policies_on_offer(run) for text in offer.policies})
    inputs = profile_inputs(run.skeleton, formats, workload, run.request.device, resized, policies)
    key = f"profile-of-{digest_of(inputs)}"
    stored = run.library.result(key)
    if stored is not None:
        profile = Profile.from_json(stored, f"{key} of the library")
        return profile, (_said(profile),)
    profile = measure_profile(
        run.skeleton,
        formats,
        workload,
        model=run.request.model,
        progress=run.progress,
        device=run.request.device,
        resized=resized,
        policies=policies,
    )
    keep_profile(run, profile)
    run.library.store_result(key, profile.to_json())
    return profile, (_said(profile),)


def profile_of(run: Run, plan: Plan) -> Profile | None:
    """What a plan's times were predicted by, from the library; None where nothing did."""
    stored = run.library.result(f"profile-{plan.profile}") if plan.profile else None
    return Profile.from_json(stored, f"{plan.profile} of the library") if stored else None


def _said(profile: Profile) -> str:
    return (
        f"times are predicted by machine profile {profile.digest} of {profile.workload}, measured"
        " here and kept in the library"
    )


def keep_profile(run: Run, profile: Profile) -> None:
    """Store a profile where plans find it by its digest."""
    run.library.store_result(f"profile-{profile.digest}", profile.to_json())


def check_profile(profile: Profile, run: Run, workload: Workload) -> None:
    """Raise ``ProfileError`` for a profile of another machine or workload."""
    if profile.workload != workload:
        raise ProfileError(
            f"profile {run.request.profile} is of {profile.workload}, the speedup is asked in"
            f" {workload}; measure one with `blockwright profile`, or ask for the same"
        )
    here = describe_machine(run.request.device)
    there = profile.machine
    both = {name: (there.get(name), here.get(name)) for name in (*there, *here)}
    differing = [f"{name} {was} (here {now})" for name, (was, now) in both.items() if was != now]
    if differing:
        raise ProfileError(
            f"profile {run.request.profile} was measured elsewhere: {', '.join(differing)};"
            " measure one here with `blockwright profile`"
        )


def formats_of(problem: Problem) -> list[PackedFormat]:
    """The packed formats on offer, by name."""
    return packed_formats(
        Candidate.parse(option.candidate)
        for option in problem.options
        if not (cache_block(option.site) or policy_block(option.site))
    )


def packed_formats(candidates: Iterable[Candidate]) -> list[PackedFormat]:
    """The packed formats of candidates, those of narrower parts and fused blocks among them, by
    name.
    """
    found = [resolve(item)[0] for item in candidates]
    inner = [each for each in found if isinstance(each, WidthFormat | FuseFormat)]
    found += [each.values for each in inner if each.values]
    formats = {format.name: format for format in found}
    return [format for _, format in sorted(formats.items()) if isinstance(format, PackedFormat)]


def left_out(problem: Problem, profile: Profile) -> Sequence[str]:
    """A note for every format that is not offered under a limit on speed, with its reason."""
    reasons: dict[str, str] = {}
    for option in problem.options:
        if option.candidate in ("keep", "drop") or profile.time_of(option.work) is not None:
            continue
        if cache_block(option.site):
            reasons.setdefault(f"KV cache {option.candidate}", "reading it was not timed")
            continue
        unknown = [name for name in option.work if name not in profile.work_ns]
        reason = profile.untimed.get(unknown[0], "the profile has no time for it")
        reasons.setdefault(option.candidate, reason)
    return [f"not offered under a speedup: {name}: {why}" for name, why in reasons.items()]
