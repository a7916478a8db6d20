"""The report of a run: its value, and its two files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blockwright.checkpoint import write_bytes_atomic, write_json_atomic
from blockwright.pipeline.choosing import Chosen
from blockwright.pipeline.frontiers import predicted_points
from blockwright.pipeline.machine import machine_of_report
from blockwright.pipeline.opening import Opened, Run
from blockwright.pipeline.recipe import RECIPE_FILE
from blockwright.plan import original_bits
from blockwright.report import (
    group_reasons,
    map_plan,
    measured_plans,
    render,
    weigh_blocks,
)
from blockwright.texts import TokenSet
from blockwright.types import Budget, FitRequest, FitResult, Plan, Problem
from blockwright.types.report import (
    NATS_PER_TOKEN,
    AskedLimit,
    Provenance,
    Report,
    TextUsed,
    Verdict,
)

REPORT_FILE = "blockwright-report.html"
REPORT_DATA_FILE = "blockwright-report.json"


def write_report(report: Report, folder: Path) -> None:
    """Both files into a folder, each whole or not at all."""
    write_json_atomic(folder / REPORT_DATA_FILE, report.to_json())
    write_bytes_atomic(folder / REPORT_FILE, render(report).encode())


def make_report(
    run: Run,
    problem: Problem,
    result: FitResult,
    plan: Plan,
    chosen: Chosen,
    folder: Path,
) -> Report:
    """The value of the report.

    ``plan`` was taken, ``chosen`` holds its rivals and all that was measured, ``folder`` is where
    the files are now.
    """
    skeleton, uniform = run.skeleton, chosen.uniform
    recipe = folder / RECIPE_FILE
    texts = {
        "calibration": run.texts.calibration,
        "selection": run.texts.selection,
        "held-out": run.texts.heldout,
    }
    return Report(
        model=run.request.model,
        model_type=skeleton.config.model_type,
        blocks=skeleton.num_blocks,
        linear_weights=problem.linear_weights,
        verdict=_verdict(run, problem, result, plan, uniform),
        loss_unit=problem.loss_unit,
        frontier=()
        if chosen.corrected is None
        else predicted_points(chosen.corrected, plan, run.request.budget),
        map=map_plan(skeleton.sites, plan, problem),
        importance=weigh_blocks(skeleton.sites, plan, uniform, problem),
        measured=measured_plans(plan, uniform, chosen.measured, result.fitted, result.uniform),
        unavailable=group_reasons(result.unavailable),
        notes=result.notes,
        machine=machine_of_report(run.request.device),
        provenance=provenance_of(
            run, problem, result, recipe.name if recipe.is_file() else "", texts
        ),
        absent=_absent(run, problem, result),
    )


def command_of(request: FitRequest) -> str:
    """The command line that asks the same; what has its default is left out."""
    words = ["blockwright", "fit", request.model]
    for item in fields(FitRequest):
        value = getattr(request, item.name)
        if item.name != "model" and value != item.default:
            words += _option(item.name, value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, Budget):
        return _budget_options(value)
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [flag, ",".join(map(str, value))]
    return [] if value is None else [flag, str(value)]


def _budget_options(budget: Budget) -> list[str]:
    words: list[str] = []
    for item in fields(Budget):
        value = getattr(budget, item.name)
        if value != item.default:
            flag = "--" + item.name.removesuffix("_bytes")
            words += [flag, f"{value:.12g}" if isinstance(value, int | float) else str(value)]
    return words


def _verdict(
    run: Run, problem: Problem, result: FitResult, plan: Plan, uniform: Plan | None
) -> Verdict:
    got = {
        "bits": plan.bits_per_weight,
        "size_bytes": result.size_bytes,
        "ratio": result.size_bytes / max(result.original_size_bytes, 1),
        "ram_bytes": result.limits.ram_bytes,
        "speedup": result.limits.speedup,
    }
    asked = {} if run.edited else plan.limits
    budget = run.request.budget
    return verdict_of(
        problem,
        result,
        plan,
        uniform,
        budget=str(budget) if budget is not None else f"the plan file {run.request.plan}",
        limits=tuple(
            AskedLimit(name=name, asked=most, got=got.get(name)) for name, most in asked.items()
        ),
    )


def verdict_of(
    problem: Problem,
    result: FitResult,
    plan: Plan,
    uniform: Plan | None,
    *,
    budget: str,
    limits: tuple[AskedLimit, ...],
) -> Verdict:
    """What was asked, got and lost."""
    return Verdict(
        budget=budget,
        limits=limits,
        plan=plan.name,
        bits_per_weight=plan.bits_per_weight,
        original_bits_per_weight=original_bits(problem) if problem.linear_weights else None,
        size_bytes=result.size_bytes,
        original_size_bytes=result.original_size_bytes,
        original=result.original,
        fitted=result.fitted,
        uniform=result.uniform,
        uniform_plan=uniform.name if uniform is not None else None,
        uniform_bits_per_weight=uniform.bits_per_weight if uniform is not None else None,
        original_speed=result.original_speed,
        fitted_speed=result.fitted_speed,
        verified_tensors=result.verified_tensors,
    )


def provenance_of(
    opened: Opened, problem: Problem, result: FitResult, recipe: str, texts: Mapping[str, TokenSet]
) -> Provenance:
    """Where the figures come from; ``texts``: by their use."""
    return Provenance(
        command=command_of(opened.request),
        recipe=recipe,
        seed=opened.request.seed,
        texts=tuple(
            TextUsed(
                name=name,
                tokens=text.tokens,
                sequence_length=text.sequence_length,
                description=text.description,
                digest=text.digest,
            )
            for name, text in texts.items()
        ),
        fingerprint=problem.fingerprint,
        statistics=problem.statistics,
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        library_hits=result.library_hits,
        library_misses=result.library_misses,
    )


def absent_speed(opened: Opened, result: FitResult) -> dict[str, str]:
    """Why something of speed that the page has room for is not there."""
    found = {}
    if not opened.request.speed:
        found["speed"] = "not measured, as asked (--no-speed)"
    elif result.original_speed is None:
        found["original_speed"] = "not timed; the notes say why"
    if opened.skeleton.task != "causal-lm":
        found["decode"] = "the model has no language head, so nothing is generated"
    return found


def _absent(run: Run, problem: Problem, result: FitResult) -> dict[str, str]:
    """Why something that the page has room for is not there."""
    found = absent_speed(run, result)
    if run.edited is not None:
        found["frontier"] = "a plan file was built, so nothing else was on offer"
        found["uniform"] = "a plan file was built, so no other was tried"
    elif result.uniform is None:
        found["uniform"] = "none fits the budget"
    if not any(option.candidate == "drop" for option in problem.options):
        found["drop_loss"] = "not measured, dropping blocks was not on offer"
    elif problem.loss_unit != NATS_PER_TOKEN:
        found["drop_loss"] = f"not measured; losses are in {problem.loss_unit}"
    return found
