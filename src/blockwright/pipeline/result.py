"""What a fit answers, and the files that tell of it inside the folder."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from blockwright.checkpoint import write_bytes_atomic
from blockwright.pipeline.building import Built
from blockwright.pipeline.card import CARD_FILE, card_text
from blockwright.pipeline.choosing import Chosen
from blockwright.pipeline.opening import Run
from blockwright.pipeline.posing import Posed
from blockwright.pipeline.proving import PLAN_FILE, Proof, peak_rss_bytes
from blockwright.pipeline.recipe import PROFILE_FILE, RECIPE_FILE, recipe_text
from blockwright.pipeline.reporting import REPORT_FILE, make_report, write_report
from blockwright.pipeline.weighing import profile_of
from blockwright.types import FitResult, LimitFigures, Plan, Problem


def result_of(
    run: Run,
    built: Built,
    posed: Posed,
    plan: Plan,
    uniform: Plan | None,
    proof: Proof,
    *,
    limits: LimitFigures,
    notes: Iterable[str],
    began: float,
) -> FitResult:
    """The figures of a finished fit; ``began``: ``time.monotonic`` at its start."""
    out = run.request.out
    return FitResult(
        out=out,
        plan_path=out / PLAN_FILE,
        report_path=out / REPORT_FILE,
        bits_per_weight=plan.bits_per_weight,
        bits_per_weight_uniform=uniform.bits_per_weight if uniform else None,
        size_bytes=proof.size_bytes,
        original_size_bytes=posed.problem.original_bytes,
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
        limits=limits,
        notes=(*notes, *proof.notes),
    )


def describe(
    run: Run, problem: Problem, result: FitResult, plan: Plan, chosen: Chosen, folder: Path
) -> None:
    """Recipe, the machine profile that it was planned by, model card and report into the folder."""
    profile = profile_of(run, plan)
    if profile is not None:
        profile.write(folder / PROFILE_FILE)
    recipe = recipe_text(run, profiled=profile is not None)
    write_bytes_atomic(folder / RECIPE_FILE, recipe.encode())
    write_bytes_atomic(folder / CARD_FILE, card_text(run, plan, result).encode())
    write_report(make_report(run, problem, result, plan, chosen, folder), folder)
