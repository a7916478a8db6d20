"""Plans that came from a file, perhaps edited by hand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from blockwright.errors import PlanError
from blockwright.plan.totals import plan_of
from blockwright.types import Option, Plan, Problem


def check_plan(plan: Plan, problem: Problem) -> None:
    """Raise ``PlanError`` where a plan does not belong to a problem or contradicts itself."""
    if plan.fingerprint != problem.fingerprint:
        raise PlanError(f"the plan was made for another model than {problem.model}")
    options = options_by_site(problem)
    held = contained(plan, options)
    for site in plan.choices:
        if site not in options:
            close = difflib.get_close_matches(site, list(options), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise PlanError(f"the plan names {site}, which {problem.model} does not have{hint}")
        if site in held:
            raise PlanError(
                f"the plan chooses for {site} and also for {held[site]}, which holds it"
            )
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


def contained(plan: Plan, options: Mapping[str, Mapping[str, Option]]) -> dict[str, str]:
    """Site -> the chosen site that holds it."""
    return {
        inner: site
        for site, choice in plan.choices.items()
        if site in options and choice.candidate in options[site]
        for inner in options[site][choice.candidate].contains
    }


def unbuilt(plan: Plan, problem: Problem) -> list[tuple[str, str]]:
    """(site, candidate) pairs of a plan that the problem has no option for."""
    options = options_by_site(problem)
    return [
        (site, choice.candidate)
        for site, choice in plan.choices.items()
        if choice.candidate not in options.get(site, {})
    ]


def resolve_edited(plan: Plan, problem: Problem) -> Plan:
    """The plan with costs and library keys of the problem's options, and its totals recounted."""
    check_plan(plan, problem)
    missing = unbuilt(plan, problem)
    if missing:
        site, candidate = missing[0]
        offered = ", ".join(sorted(options_by_site(problem)[site]))
        raise PlanError(f"the plan asks for {candidate} at {site}; available there: {offered}")
    options = options_by_site(problem)
    chosen = [options[site][choice.candidate] for site, choice in plan.choices.items()]
    return plan_of(problem, chosen, budget=plan.budget, name=plan.name)


def _check_ties(plan: Plan, options: Mapping[str, Mapping[str, Option]]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for site, choice in plan.choices.items():
        tie = next((option.tie for option in options[site].values()), "")
        first = seen.setdefault(tie, (site, choice.candidate)) if tie else (site, choice.candidate)
        if first[1] != choice.candidate:
            raise PlanError(
                f"the plan has {choice.candidate} at {site} and {first[1]} at {first[0]};"
                " these are tied and take one candidate"
            )
