"""Plans: the best mix of candidates under a budget.  Imports no torch."""

from blockwright.plan.checking import check_plan, resolve_edited, unbuilt, workload_of
from blockwright.plan.correcting import corrected, correction_factors
from blockwright.plan.families import families_of, families_on_offer, only_family
from blockwright.plan.limits import budget_bytes, limits_of, original_bits
from blockwright.plan.profiled import with_profile
from blockwright.plan.solving import check_possible, frontier, most_speedup, solve
from blockwright.plan.totals import plan_of
from blockwright.plan.uniform import best_uniform, uniform_plans

__all__ = [
    "best_uniform",
    "budget_bytes",
    "check_plan",
    "check_possible",
    "corrected",
    "correction_factors",
    "families_of",
    "families_on_offer",
    "frontier",
    "limits_of",
    "most_speedup",
    "only_family",
    "original_bits",
    "plan_of",
    "resolve_edited",
    "solve",
    "unbuilt",
    "uniform_plans",
    "with_profile",
    "workload_of",
]
