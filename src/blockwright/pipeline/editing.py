"""Building a plan that came from a file."""

from __future__ import annotations

from blockwright.pipeline.choosing import Chosen
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run
from blockwright.plan import resolve_edited
from blockwright.types import Problem


def adopt_plan(run: Run, problem: Problem) -> Chosen:
    """The run's plan file with its variants found, its totals recounted, and itself measured."""
    if run.edited is None:
        raise ValueError("adopt_plan needs a plan")
    plan = measure_on_selection(run, resolve_edited(run.edited, problem))
    return Chosen(plan, None, (plan,))
