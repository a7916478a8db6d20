"""What a lossless fit answers, and the files that tell of it inside the folder."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from blockwright.checkpoint import write_bytes_atomic
from blockwright.pipeline.card import (
    CARD_FILE,
    REPEATED,
    chosen_table,
    figures_table,
    front_matter,
    licence_note,
    loading_note,
    model_name,
    origin_line,
    original_metadata,
)
from blockwright.pipeline.lossless_proof import LosslessProof
from blockwright.pipeline.machine import machine_line, machine_of_report
from blockwright.pipeline.opening import Opened
from blockwright.pipeline.posing import loss_unit
from blockwright.pipeline.proving import PLAN_FILE, peak_rss_bytes
from blockwright.pipeline.recipe import RECIPE_FILE, lossless_recipe_text
from blockwright.pipeline.reporting import (
    REPORT_FILE,
    absent_speed,
    provenance_of,
    verdict_of,
    write_report,
)
from blockwright.report import map_plan, weigh_blocks
from blockwright.types import FitResult, LimitFigures, Plan, Problem, Quality, Workload
from blockwright.types.report import Report

NOT_MEASURED = Quality(tokens=0)
NOTHING_LOST = "nothing is lost, so nothing else was tried"


def lossless_result(
    opened: Opened,
    plan: Plan,
    proof: LosslessProof,
    *,
    hits: int,
    misses: int,
    notes: Iterable[str],
    began: float,
) -> FitResult:
    """The figures; quality is not measured, because every bit is the original's."""
    out = opened.request.out
    return FitResult(
        out=out,
        plan_path=out / PLAN_FILE,
        report_path=out / REPORT_FILE,
        bits_per_weight=plan.bits_per_weight,
        bits_per_weight_uniform=None,
        size_bytes=proof.size_bytes,
        original_size_bytes=opened.original.checkpoint.total_file_bytes,
        original=NOT_MEASURED,
        fitted=NOT_MEASURED,
        uniform=None,
        uniform_candidate=None,
        original_speed=proof.original_speed,
        fitted_speed=proof.fitted_speed,
        seconds=time.monotonic() - began,
        peak_rss_bytes=peak_rss_bytes(),
        library_hits=hits,
        library_misses=misses,
        unavailable={},
        limits=LimitFigures(workload=str(Workload()), profile=""),
        verified_tensors=proof.verified_tensors,
        notes=(*notes, *proof.notes),
    )


def describe_lossless(
    opened: Opened, problem: Problem, plan: Plan, result: FitResult, folder: Path
) -> None:
    """Recipe, model card and report into the folder."""
    write_bytes_atomic(folder / RECIPE_FILE, lossless_recipe_text(opened).encode())
    write_bytes_atomic(folder / CARD_FILE, lossless_card(opened, plan, result).encode())
    write_report(lossless_report(opened, problem, plan, result), folder)


def verified_line(result: FitResult) -> str:
    """The proof in a sentence."""
    return f"{result.verified_tensors} tensors hashed: each is bit for bit the original's"


def lossless_card(opened: Opened, plan: Plan, result: FitResult) -> str:
    """The card: what it is, its figures, how to load it, what was chosen, its licence."""
    metadata, reason = original_metadata(opened.original.source.path)
    notes = "".join(f"\n- {note}" for note in result.notes)
    share = result.size_bytes / result.original_size_bytes
    sections = [
        f"---\n{front_matter(opened, metadata)}\n---",
        f"# {model_name(opened)}, without loss at {share:.0%} of its size",
        origin_line(opened, plan),
        "Weights are decoded to the original's bfloat16 when the model is loaded: smaller on disk,"
        " the same in memory.",
        "## Figures",
        figures_table(result),
        f"- {verified_line(result)}\n- machine: {machine_line()}{notes}",
        "## Load it",
        loading_note(opened),
        "## What was chosen",
        chosen_table(opened, plan, {}),
        REPEATED,
        "## Licence",
        licence_note(opened, metadata, reason),
    ]
    return "\n\n".join(sections) + "\n"


def lossless_report(opened: Opened, problem: Problem, plan: Plan, result: FitResult) -> Report:
    """The value of the report."""
    skeleton, request = opened.skeleton, opened.request
    return Report(
        model=request.model,
        model_type=skeleton.config.model_type,
        blocks=skeleton.num_blocks,
        linear_weights=problem.linear_weights,
        verdict=verdict_of(problem, result, plan, None, budget=plan.budget, limits=()),
        loss_unit=loss_unit(opened),
        frontier=(),
        map=map_plan(skeleton.sites, plan, problem),
        importance=weigh_blocks(skeleton.sites, plan, None, problem),
        measured=(),
        unavailable=(),
        notes=result.notes,
        machine=machine_of_report(request.device),
        provenance=provenance_of(opened, problem, result, RECIPE_FILE, {}),
        absent=_absent(opened, result),
    )


def _absent(opened: Opened, result: FitResult) -> dict[str, str]:
    """Why something that the page has room for is not there."""
    return absent_speed(opened, result) | {
        **dict.fromkeys(("frontier", "uniform", "measured"), NOTHING_LOST),
        "importance": "every bit is the original's",
        "drop_loss": "not measured, dropping blocks was not on offer",
    }
