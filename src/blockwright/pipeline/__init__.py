"""The whole flow.  Read this first.

checkpoint -> anatomy -> capture -> library -> plan -> refine -> assemble -> evaluate -> report
"""

from __future__ import annotations

import time

from blockwright.pipeline.building import build_library
from blockwright.pipeline.editing import adopt_plan
from blockwright.pipeline.healing import heal_plan
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import check_budget, pose_problem
from blockwright.pipeline.pricing import price
from blockwright.pipeline.proving import PLAN_FILE, peak_rss_bytes, prove, write_folder
from blockwright.pipeline.refining import refine_plans
from blockwright.pipeline.sampling import with_sampled_text
from blockwright.pipeline.timing import choose_in_time, measure_limits, time_edited
from blockwright.pipeline.weighing import check_limits, weigh
from blockwright.progress import Progress, SilentProgress
from blockwright.types import FitRequest, FitResult

__all__ = ["fit", "price"]


def fit(request: FitRequest, progress: Progress | None = None) -> FitResult:
    """Fit a model to a budget; the result is in ``request.out``, measured.

    Killed at any moment, the same call resumes from the library.  Raises ``UserError`` for bad
    input.
    """
    began = time.monotonic()
    run = open_run(request, progress or SilentProgress())
    check_budget(run)
    check_limits(run)
    run = with_sampled_text(run)
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
    size = write_folder(run, plan, request.out)
    proof = prove(run, request.out, uniform)
    return FitResult(
        out=request.out,
        plan_path=request.out / PLAN_FILE,
        bits_per_weight=plan.bits_per_weight,
        bits_per_weight_uniform=uniform.bits_per_weight if uniform else None,
        size_bytes=size,
        original_size_bytes=problem.original_bytes,
        original=proof.original,
        fitted=proof.fitted,
        uniform=proof.uniform,
        uniform_candidate=uniform.name.removeprefix("uniform ") if uniform else None,
        original_speed=proof.original_speed,
        fitted_speed=proof.fitted_speed,
        seconds=time.monotonic() - began,
        peak_rss_bytes=peak_rss_bytes(),
        library_hits=built.hits,
        library_misses=built.misses,
        unavailable=dict(posed.unavailable),
        limits=measure_limits(run, plan, timed.timing),
        notes=(*run.texts.notes, *weighed.notes, *timed.notes, *proof.notes),
    )
