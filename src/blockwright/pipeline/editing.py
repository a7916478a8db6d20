"""Building a plan that came from a file."""

from __future__ import annotations

from blockwright.pipeline.choosing import measure_plan, original_hidden, with_measured
from blockwright.pipeline.opening import Run
from blockwright.plan import resolve_edited
from blockwright.types import Plan, Problem


def adopt_plan(run: Run, problem: Problem) -> Plan:
    """The run's plan file with its variants found, its totals recounted, and itself measured."""
    if run.edited is None:
        raise ValueError("adopt_plan needs a plan")
    plan = resolve_edited(run.edited, problem)
    original = original_hidden(run, run.texts.selection.ids, "selection")
    return with_measured(plan, measure_plan(run, plan, original, run.texts.selection.digest))
