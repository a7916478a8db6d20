"""The whole flow.  Read this first.

checkpoint -> anatomy -> capture -> library -> plan -> refine -> assemble -> heal -> evaluate
-> report
"""

from __future__ import annotations

import time

from blockwright.assemble import unfinished_folder
from blockwright.pipeline.attending import policy_notes
from blockwright.pipeline.averaging import average
from blockwright.pipeline.building import build_library
from blockwright.pipeline.caching import cache_notes
from blockwright.pipeline.curvature import sensitivity_note
from blockwright.pipeline.editing import adopt_plan
from blockwright.pipeline.heal_fit import heal_folder
from blockwright.pipeline.heal_model import heal
from blockwright.pipeline.healing import heal_plan
from blockwright.pipeline.lossless import fit_lossless
from blockwright.pipeline.merging import merge
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.pricing import price
from blockwright.pipeline.proving import prove, write_folder
from blockwright.pipeline.recipe import check_recipe
from blockwright.pipeline.refining import refine_plans
from blockwright.pipeline.result import describe, result_of
from blockwright.pipeline.sampling import with_sampled_text
from blockwright.pipeline.timing import choose_in_time, measure_limits, time_edited
from blockwright.pipeline.weighing import check_limits, weigh
from blockwright.progress import Progress, SilentProgress
from blockwright.types import FitRequest, FitResult

__all__ = ["average", "fit", "heal", "merge", "price"]


def fit(request: FitRequest, progress: Progress | None = None) -> FitResult:
    """Fit a model to a budget; the result is in ``request.out``, measured.

    The folder gets its name when all is proved.  Killed at any moment, the same call resumes from
    the library.  Raises ``UserError`` for bad input.
    """
    if request.lossless:
        return fit_lossless(request, progress or SilentProgress())
    began = time.monotonic()
    run = open_run(request, progress or SilentProgress())
    check_limits(run)
    run = with_sampled_text(run)
    notes = (*run.texts.notes, *check_recipe(run))
    built = build_library(run)
    posed = pose_problem(run, built)
    weighed = weigh(run, posed.problem)
    problem = weighed.problem
    if run.edited is None:
        timed = choose_in_time(run, problem)
    else:
        timed = time_edited(run, adopt_plan(run, problem))
    chosen = refine_plans(run, timed.chosen)
    plan, uniform = heal_plan(run, chosen.plan), chosen.uniform
    notes = (*notes, sensitivity_note(run), *weighed.notes, *timed.notes)
    notes += cache_notes(run, problem, plan) + policy_notes(plan)
    with unfinished_folder(request.out) as folder:
        write_folder(run, plan, folder)
        run, healed = heal_folder(run, plan, folder)
        notes += healed
        proof = prove(run, folder, uniform)
        limits = measure_limits(run, plan, timed.timing, folder)
        result = result_of(
            run, built, posed, plan, uniform, proof, limits=limits, notes=notes, began=began
        )
        describe(run, problem, result, plan, chosen, folder)
        run.library.remove_left_behind()
    return result
