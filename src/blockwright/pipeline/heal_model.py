"""``blockwright heal``: a fitted folder and its original in, a healed folder out, measured."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blockwright.assemble import check_free, unfinished_folder
from blockwright.checkpoint import (
    Checkpoint,
    resolve_model,
    write_bytes_atomic,
    write_json_atomic,
)
from blockwright.evaluate import FinalHidden, measure, run_to_file
from blockwright.heal.peft_files import save_adapter
from blockwright.library import Library
from blockwright.pipeline.blockwise_healing import check_blockwise, heal_blockwise
from blockwright.pipeline.card import CARD_FILE
from blockwright.pipeline.heal_summary import HealSummary
from blockwright.pipeline.heal_texts import open_heal_texts
from blockwright.pipeline.opening import Opened, open_original, set_up
from blockwright.pipeline.proving import RELOAD_ROWS, RELOAD_TOKENS, open_fitted, reload_alike
from blockwright.pipeline.recipe import RECIPE_FILE
from blockwright.pipeline.reporting import REPORT_DATA_FILE, REPORT_FILE
from blockwright.pipeline.whole_healing import (
    HEAL_FILE,
    Changes,
    HealJob,
    check_names,
    check_teacher,
    train_job,
    write_changes,
    write_healed,
)
from blockwright.progress import Progress, SilentProgress
from blockwright.stream import Inputs
from blockwright.types import KEEP, FitRequest, HealRequest, HealResult, Quality

OUT_OF_DATE = (REPORT_FILE, REPORT_DATA_FILE, RECIPE_FILE)
"""Files of a fit that say nothing of the healed model."""


def heal(request: HealRequest, progress: Progress | None = None) -> HealResult:
    """Heal a fitted model; the result is in ``request.out``, measured.

    Killed at any moment, the same call resumes from ``OUT.healing``.  Raises ``UserError``.
    """
    began = time.monotonic()
    check_names(request)
    if request.blockwise:
        check_blockwise(request)
    job = open_job(request, progress or SilentProgress())
    done = _by_block(job) if request.blockwise else _as_a_whole(job)
    with unfinished_folder(request.out) as folder:
        size = done.write(folder)
        qualities = measure_all(job, folder)
        result = result_of(job, done.summary, qualities, size, began)
        describe(job, result, folder)
        done.save()
    shutil.rmtree(job.work)
    return result


@dataclass(frozen=True)
class _Done:
    """A healing that is done, not yet written."""

    summary: HealSummary
    write: Callable[[Path], int]
    """Fills an empty folder; bytes of its safetensors files."""
    save: Callable[[], None] = lambda: None
    """Writes the adapter, where it is asked for."""


def _as_a_whole(job: HealJob) -> _Done:
    outcome = train_job(job)

    def save() -> None:
        if job.request.save_adapter is not None:
            student = outcome.student
            save_adapter(student.model, student.attachments, job.request.save_adapter)

    write = partial(write_healed, job, outcome, left=OUT_OF_DATE)
    return _Done(outcome.summary(job), write, save)


def _by_block(job: HealJob) -> _Done:
    healed = heal_blockwise(job)

    def write(folder: Path) -> int:
        return write_changes(healed.checkpoint, Changes(), folder, OUT_OF_DATE)

    return _Done(healed.summary, write)


def open_job(request: HealRequest, progress: Progress) -> HealJob:
    """Open the models and the texts, checked."""
    asked = fit_request_of(request)
    check_free(request.out)
    set_up(asked)
    fitted = resolve_model(
        request.model, request.revision, trust_remote_code=request.trust_remote_code
    ).path
    with progress.stage("open models and texts", 2, "parts") as stage:
        skeleton = open_fitted(fitted, request.trust_remote_code, request.device).skeleton
        original = open_original(request.against, None, request.trust_remote_code, progress)
        check_teacher(skeleton, original.skeleton, request)
        stage.advance()
        texts = open_heal_texts(asked, fitted, skeleton)
    return HealJob(
        request=request,
        progress=progress,
        fitted=fitted,
        skeleton=skeleton,
        original=original,
        texts=texts,
        work=request.out.with_name(request.out.name + ".healing"),
    )


def fit_request_of(request: HealRequest) -> FitRequest:
    """What texts and surroundings a fit would be asked for."""
    return FitRequest(
        model=request.model,
        out=request.out,
        budget=None,
        calibration=request.data,
        eval_text=request.eval_text,
        revision=request.revision,
        seed=request.seed,
        threads=request.threads,
        sequence_length=request.sequence_length,
        eval_tokens=request.eval_tokens,
        device=request.device,
        trust_remote_code=request.trust_remote_code,
        speed=False,
    )


def measure_all(job: HealJob, healed: Path) -> tuple[Quality, Quality, Quality]:
    """Qualities on the held-out text: before, after, and the original's own; the healed folder is
    reloaded in a fresh process, too.
    """
    request, inputs = job.request, Inputs.of_tokens(job.texts.heldout.ids)
    opened = Opened(fit_request_of(request), job.progress, job.original, Library(job.work / "none"))
    streams = {
        "original": opened.stream(),
        "before": open_fitted(job.fitted, request.trust_remote_code, request.device),
        "after": open_fitted(healed, request.trust_remote_code, request.device),
    }
    hidden: dict[str, FinalHidden] = {}
    parts = sum(len(stream.blocks) + 1 for stream in streams.values())
    found: dict[str, Quality] = {}
    with job.progress.stage("measure", parts, "parts") as stage:
        for name, stream in streams.items():
            target = job.work / f"heldout-{name}.bin"
            target.unlink(missing_ok=True)
            hidden[name] = run_to_file(stream, inputs, target, stage.advance)
            against = None if name == "original" else hidden["original"]
            found[name] = measure(hidden[name], against)
            stage.advance()
    rows = inputs.values[:RELOAD_ROWS, :RELOAD_TOKENS].contiguous()
    stream = open_fitted(healed, request.trust_remote_code, request.device, kv=str(KEEP))
    reload_alike(opened, healed, stream, Inputs(inputs.name, rows, RELOAD_ROWS), job.work, rows[0])
    return found["before"], found["after"], found["original"]


def recovered_share(before: Quality, after: Quality, original: Quality) -> float | None:
    """(loss before - loss after) / (loss before - the original's), in cross-entropy."""
    if before.perplexity is None or after.perplexity is None or original.perplexity is None:
        return None
    logs = [math.log(quality.perplexity or 1.0) for quality in (before, after, original)]
    excess = logs[0] - logs[2]
    return (logs[0] - logs[1]) / excess if excess > 0 else None


def result_of(
    job: HealJob,
    summary: HealSummary,
    qualities: tuple[Quality, Quality, Quality],
    size: int,
    began: float,
) -> HealResult:
    before, after, original = qualities
    notes = job.texts.notes
    if not summary.best_step:
        notes += ("nothing was better on the selection text: the folder is the fitted one",)
    return HealResult(
        out=job.request.out,
        adapters=summary.adapters,
        trainable=summary.trainable,
        parameters=summary.parameters,
        optimizer=job.request.optimizer,
        optimizer_bytes=summary.optimizer_bytes,
        steps=summary.steps,
        best_step=summary.best_step,
        rollbacks=summary.rollbacks,
        tokens_per_step=summary.tokens_per_step,
        selection_loss_before=summary.loss_before,
        selection_loss_after=summary.loss_after,
        original=original,
        before=before,
        after=after,
        recovered=recovered_share(before, after, original),
        size_bytes_before=Checkpoint.open(job.fitted).total_file_bytes,
        size_bytes=size,
        seconds=time.monotonic() - began,
        training_seconds=summary.seconds,
        notes=notes,
    )


def describe(job: HealJob, result: HealResult, folder: Path) -> None:
    """What was done, as JSON and behind the fitted model's card; no times, so that the same healing
    gives the same bytes.
    """
    write_json_atomic(folder / HEAL_FILE, described(result))
    card = job.fitted / CARD_FILE
    if card.is_file():
        text = card.read_text(encoding="utf-8").rstrip() + "\n\n" + card_section(result)
        write_bytes_atomic(folder / CARD_FILE, text.encode())


def described(result: HealResult) -> Mapping[str, Any]:
    """The result without places and times."""
    left = {"out", "seconds", "training_seconds"}
    return {name: value for name, value in result.to_json().items() if name not in left}


def card_section(result: HealResult) -> str:
    """A section of the model card; the figures above it are those of before."""
    adapters = ", ".join(f"{name} at {hosts}" for name, hosts in result.adapters.items())
    lines = [
        "## Healed",
        "",
        f"Trained towards the original for {result.steps} steps of {result.tokens_per_step} tokens"
        f" ({adapters}; {result.optimizer}); `{HEAL_FILE}` has all figures.  The figures above are"
        " those of before.",
        "",
        "| held-out text | original | before | healed |",
        "|---|---|---|---|",
    ]
    for name, word in (("perplexity", "perplexity"), ("kl_divergence", "KL, nats/token")):
        cells = [asdict(q)[name] for q in (result.original, result.before, result.after)]
        if any(cell is not None for cell in cells):
            shown = " | ".join("" if cell is None else f"{cell:.5g}" for cell in cells)
            lines.append(f"| {word} | {shown} |")
    return "\n".join(lines) + "\n"
