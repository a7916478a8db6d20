"""The whole flow.  Read this first.

checkpoint -> anatomy -> capture -> library -> plan -> refine -> assemble -> evaluate -> report
"""

from __future__ import annotations

import time

from blockwright.assemble import unfinished_folder
from blockwright.checkpoint import write_bytes_atomic
from blockwright.pipeline.building import build_library
from blockwright.pipeline.card import CARD_FILE, card_text
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.editing import adopt_plan
from blockwright.pipeline.healing import heal_plan
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import check_budget, pose_problem
from blockwright.pipeline.pricing import price
from blockwright.pipeline.proving import PLAN_FILE, peak_rss_bytes, prove, write_folder
from blockwright.pipeline.recipe import RECIPE_FILE, check_recipe, recipe_text
from blockwright.pipeline.refining import refine_plans
from blockwright.pipeline.reporting import REPORT_FILE, make_report, write_report
from blockwright.pipeline.sampling import with_sampled_text
from blockwright.progress import Progress, SilentProgress
from blockwright.types import FitRequest, FitResult

__all__ = ["fit", "price"]


def fit(request: FitRequest, progress: Progress | None = None) -> FitResult:
    """Fit a model to a budget; the result is in ``request.out``, measured.

    The folder gets its name when all is proved.  Killed at any moment, the same call resumes from
    the library.  Raises ``UserError`` for bad input.
    """
    began = time.monotonic()
    run = open_run(request, progress or SilentProgress())
    check_budget(run)
    run = with_sampled_text(run)
    notes = (*run.texts.notes, *check_recipe(run))
    built = build_library(run)
    posed = pose_problem(run, built)
    problem = posed.problem
    chosen = choose_plan(run, problem) if run.edited is None else adopt_plan(run, problem)
    chosen = refine_plans(run, chosen)
    plan, uniform = heal_plan(run, chosen.plan), chosen.uniform
    with unfinished_folder(request.out) as folder:
        size = write_folder(run, plan, folder)
        proof = prove(run, folder, uniform)
        result = FitResult(
            out=request.out,
            plan_path=request.out / PLAN_FILE,
            report_path=request.out / REPORT_FILE,
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
            notes=(*notes, *proof.notes),
        )
        write_bytes_atomic(folder / RECIPE_FILE, recipe_text(run).encode())
        write_bytes_atomic(folder / CARD_FILE, card_text(run, plan, result).encode())
        write_report(make_report(run, problem, result, plan, chosen, folder), folder)
    return result
