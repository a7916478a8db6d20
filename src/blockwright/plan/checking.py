"""Plans that came from a file, perhaps edited by hand."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from blockwright.errors import PlanError
from blockwright.plan.limits import excess
from blockwright.plan.totals import plan_of
from blockwright.types import Option, Plan, Problem, Workload

Offered = Mapping[str, Mapping[str, Option]]
"""Site -> candidate -> option."""


def check_plan(plan: Plan, problem: Problem) -> None:
    """Raise ``PlanError`` where a plan does not belong to a problem or contradicts itself.

    A candidate that the problem has no option for is no error here (see ``unbuilt``); ``drop`` is,
    for nothing can be built there.
    """
    if plan.fingerprint != problem.fingerprint:
        raise PlanError(f"the plan was made for another model than {problem.model}")
    options = options_by_site(problem)
    held = contained(plan, options)
    for site, choice in plan.choices.items():
        if site not in options:
            hint = _nearest(site, options)
            raise PlanError(f"the plan names {site}, which {problem.model} does not have{hint}")
        if site in held:
            raise PlanError(
                f"the plan chooses for {site} and also for {held[site]}, which holds it"
            )
        if choice.candidate == "drop" and "drop" not in options[site]:
            raise PlanError(f"the plan drops {site}, which cannot be dropped; choose keep")
    for site, offered in options.items():
        optional = all(option.contains for option in offered.values())
        if site not in plan.choices and site not in held and not optional:
            raise PlanError(f"the plan has no choice for {site}; add one, e.g. keep")
    _check_ties(plan, options)


def options_by_site(problem: Problem) -> dict[str, dict[str, Option]]:
    """Site -> candidate -> option."""
    found: dict[str, dict[str, Option]] = {}
    for option in problem.options:
        found.setdefault(option.site, {})[option.candidate] = option
    return found


def contained(plan: Plan, options: Offered) -> dict[str, str]:
    """Site -> the chosen site that holds it; ``PlanError`` where two chosen sites hold one."""
    held: dict[str, str] = {}
    for site, choice in plan.choices.items():
        option = options.get(site, {}).get(choice.candidate)
        for inner in option.contains if option else ():
            if held.setdefault(inner, site) != site:
                raise PlanError(
                    f"the plan chooses for {held[inner]} and for {site}, and both hold {inner}"
                )
    return held


def unbuilt(plan: Plan, problem: Problem) -> list[tuple[str, str]]:
    """(site, candidate) pairs of a plan that the problem has no option for."""
    options = options_by_site(problem)
    return [
        (site, choice.candidate)
        for site, choice in plan.choices.items()
        if choice.candidate not in options.get(site, {})
    ]


def resolve_edited(plan: Plan, problem: Problem) -> Plan:
    """The plan with costs and library keys of the problem's options, and its totals recounted.

    Raises ``PlanError`` where a candidate is not there, or the plan is over the limits it carries.
    """
    options = options_by_site(problem)
    if plan.fingerprint == problem.fingerprint:
        _check_built(plan, problem, options)
    check_plan(plan, problem)
    chosen = [options[site][choice.candidate] for site, choice in plan.choices.items()]
    found = plan_of(
        problem,
        chosen,
        budget=plan.budget,
        name=plan.name,
        limits=plan.limits,
        workload=workload_of(plan),
    )
    if over := excess(problem, found, plan.limits):
        raise PlanError(
            f"the plan takes {over}; choose smaller candidates, or raise or remove its 'limits'"
        )
    return found


def workload_of(plan: Plan) -> Workload:
    """What a plan's memory and latency are counted at; ``PlanError`` where that is malformed."""
    if plan.workload is None:
        return Workload()
    try:
        return Workload.from_json(plan.workload)
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(
            f"the plan's 'workload' is malformed ({error}); give phase, batch and context"
        ) from None


def _check_built(plan: Plan, problem: Problem, options: Offered) -> None:
    """What is not there comes first: a group that was not built leaves its members undecided."""
    for site, candidate in unbuilt(plan, problem):
        if site in options and candidate != "drop":
            offered = ", ".join(sorted(options[site]))
            hint = _nearest(candidate, options[site])
            raise PlanError(
                f"the plan asks for {candidate} at {site}{hint}; available there: {offered}"
            )


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_ties(plan: Plan, options: Offered) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for site, choice in plan.choices.items():
        tie = next((option.tie for option in options[site].values()), "")
        first = seen.setdefault(tie, (site, choice.candidate)) if tie else (site, choice.candidate)
        if first[1] != choice.candidate:
            raise PlanError(
                f"the plan has {choice.candidate} at {site} and {first[1]} at {first[0]};"
                " these are tied and take one candidate"
            )
