"""Uniform plans: one candidate everywhere, the rival of every mixed plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from blockwright.plan.limits import Limit, limits_of, limits_on
from blockwright.plan.totals import plan_of
from blockwright.types import Budget, Candidate, Option, Plan, Problem, cache_block, policy_block

Offered = Mapping[str, Mapping[str, Option]]
"""Site -> candidate -> option."""


def uniform_plans(problem: Problem, budget: Budget) -> list[Plan]:
    """Plans with one candidate at all linears, those that keep all limits, least predicted loss
    first.

    A linear that nothing but ``keep`` is offered for keeps its weights.  A candidate that scales
    groups (``int4-g64:awq>gptq``) stands at every group that has it, the rest of its chain
    (``int4-g64:gptq``) at all other linears; it is left out where that one is not offered.  Tables
    keep theirs under a budget in bits alone; else each candidate of the tables, the same for all,
    is tried too, and each format of the KV caches and each attention policy where they are on
    offer.
    """
    linears, tables, states, rest = _by_role(problem)
    kept = ["keep", *_candidates(tables)] if budget.counts_files else ["keep"]
    beside = list(product(kept, ["keep", *_candidates(states)]))
    limits = limits_on(problem, budget)
    plans = []
    for candidate, everywhere in _linear_choices(problem, linears, rest).items():
        for table, state in beside:
            chosen = [*everywhere, *_everywhere(tables, table), *_everywhere(states, state)]
            if keeps(chosen, limits):
                name = f"uniform {candidate}" + ("" if table == "keep" else f", tables {table}")
                name += "" if state == "keep" else f", {_kind(states)} {state}"
                found = plan_of(
                    problem,
                    chosen,
                    budget=str(budget),
                    name=name,
                    limits=limits_of(budget),
                    workload=budget.workload,
                )
                plans.append(found)
    return sorted(plans, key=lambda plan: (plan.loss, plan.size_bytes, plan.name))


def best_uniform(problem: Problem, budget: Budget) -> Plan | None:
    """The uniform plan of least predicted loss that fits, if one does."""
    return next(iter(uniform_plans(problem, budget)), None)


def keeps(chosen: Sequence[Option], limits: Sequence[Limit]) -> bool:
    """Whether options keep all limits together; what is not known keeps none."""
    for limit in limits:
        costs = [limit.cost(option) for option in chosen]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs) or sum(known) > limit.bound:
            return False
    return True


def _by_role(problem: Problem) -> tuple[Offered, Offered, Offered, list[Option]]:
    """Linears, tables, KV caches or attention policies, and the ``keep`` of what contains
    others.
    """
    offered: dict[str, dict[str, Option]] = {}
    for option in problem.options:
        offered.setdefault(option.site, {})[option.candidate] = option
    containers = {option.site for option in problem.options if option.contains}
    leaves = {site: found for site, found in offered.items() if site not in containers}
    linears = {s: found for s, found in leaves.items() if any(o.weights for o in found.values())}
    states = {s: found for s, found in leaves.items() if cache_block(s) or policy_block(s)}
    tables = {s: found for s, found in leaves.items() if s not in linears and s not in states}
    rest = [offered[site]["keep"] for site in containers if "keep" in offered[site]]
    return linears, tables, states, rest


def _kind(states: Offered) -> str:
    return "KV cache" if any(map(cache_block, states)) else "attention"


def _linear_choices(
    problem: Problem, linears: Offered, rest: list[Option]
) -> dict[str, list[Option]]:
    """One candidate at all linears, alone or by groups, with the ``keep`` of what contains them."""
    found = {each: [*_everywhere(linears, each), *rest] for each in _candidates(linears)}
    groups: dict[str, list[Option]] = {}
    for option in problem.options:
        if option.contains and option.weights:
            groups.setdefault(option.candidate, []).append(option)
    for candidate, options in groups.items():
        rest_of_chain = str(_without_first_method(candidate))
        if rest_of_chain in found:
            decided = {option.site for option in options}
            decided |= {site for option in options for site in option.contains}
            others = [o for o in found[rest_of_chain] if o.site not in decided]
            found[candidate] = [*others, *options]
    return found


def _without_first_method(candidate: str) -> Candidate:
    parsed = Candidate.parse(candidate)
    return replace(parsed, methods=parsed.methods[1:])


def _candidates(sites: Offered) -> list[str]:
    """Candidates that every site with a choice offers, ``keep`` left out."""
    choices = [set(found) - {"keep"} for found in sites.values()]
    choices = [found for found in choices if found]
    return sorted(set.intersection(*choices)) if choices else []


def _everywhere(sites: Offered, candidate: str) -> list[Option]:
    """One option per site: the candidate, or ``keep`` where nothing else is offered."""
    return [found.get(candidate) or found["keep"] for found in sites.values()]
