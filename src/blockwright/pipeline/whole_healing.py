"""Healing of a whole fitted model: distillation from its original, resumable.

    open -> student, adapters -> original on the text -> probe -> train -> write -> measure

What a killed run needs lies in ``OUT.healing`` (state, step count, the original's last hidden
states) and goes when the folder is written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockwright.anatomy import Skeleton
from blockwright.assemble import rewrite_folder
from blockwright.checkpoint import Checkpoint, write_json_atomic
from blockwright.errors import AdapterError, ModelError
from blockwright.evaluate import run_to_file
from blockwright.heal import (
    ADAPTER_PREFIX,
    Chosen,
    Healed,
    HealSettings,
    Student,
    TaughtText,
    Training,
    rows_of_step,
    train,
)
from blockwright.pipeline.heal_steps import Pace, timed, timed_again
from blockwright.pipeline.heal_student import keep_memory_low, load_student, train_what_fits
from blockwright.pipeline.heal_summary import HealSummary
from blockwright.pipeline.opening import Original, digest_of
from blockwright.pipeline.texts import Texts
from blockwright.progress import Progress
from blockwright.stream import BATCH_TOKENS, Inputs, Stream
from blockwright.texts import TokenSet
from blockwright.tuning.optimizers import check_optimizer, optimizer_named
from blockwright.types import DEFAULT_MINUTES, HealRequest

HEALING_VERSION = 1
"""Raised whenever healed tensors change: a stored state of another version is not continued."""
RATE = 0.005
CHECKS = 8
RUN_FILE = "run.json"
PLACES = ("model", "against", "out", "data", "eval_text", "eval_tokens", "save_adapter")
"""Of a request: what is read from there is hashed itself."""
HEAL_FILE = "blockwright-heal.json"
"""What healing did, in the healed folder."""


@dataclass(frozen=True, kw_only=True)
class HealJob:
    """One fitted folder, its original, texts, and where a killed run's state is."""

    request: HealRequest
    progress: Progress
    fitted: Path
    skeleton: Skeleton
    """Of the fitted folder."""
    original: Original
    texts: Texts
    work: Path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.fitted)

    @property
    def batch_tokens(self) -> int:
        return self.request.batch_tokens or BATCH_TOKENS

    @property
    def rows_per_step(self) -> int:
        return max(1, self.batch_tokens // self.texts.calibration.sequence_length)

    def original_stream(self) -> Stream:
        """The original, in fp32."""
        original, device = self.original, self.request.device
        return Stream(original.skeleton, original.parameters, dtype=torch.float32, device=device)

    @cached_property
    def identity(self) -> str:
        """Digest of everything that decides the healed tensors, minutes as they were asked."""
        request = self.request
        tensors = [(name, self.checkpoint.digest(name)) for name in sorted(self.checkpoint.names)]
        config = (self.fitted / "config.json").read_text(encoding="utf-8")
        asked = {key: value for key, value in asdict(request).items() if key not in PLACES}
        texts = [self.texts.calibration.digest, self.texts.selection.digest]
        surroundings = [torch.__version__, torch.get_num_threads(), HEALING_VERSION]
        return digest_of([tensors, config, self.original.fingerprint, asked, texts, surroundings])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A healing that is done."""

    healed: Healed
    chosen: tuple[Chosen, ...]
    student: Student
    steps: int
    optimizer_bytes: int
    seconds: float

    def summary(self, job: HealJob) -> HealSummary:
        """Its figures."""
        progress, counts = self.healed.progress, self.student.counts
        return HealSummary(
            adapters={each.name: len(each.hosts) for each in self.chosen},
            trainable=counts.trainable,
            parameters=counts.frozen,
            optimizer_bytes=self.optimizer_bytes,
            steps=self.steps,
            best_step=progress.best_step,
            rollbacks=progress.rollbacks,
            tokens_per_step=job.rows_per_step * job.texts.calibration.sequence_length,
            loss_before=progress.start_loss,
            loss_after=progress.best_loss,
            seconds=self.seconds,
        )


def check_teacher(fitted: Skeleton, original: Skeleton, request: HealRequest) -> None:
    """Raise ``ModelError`` where a model cannot be healed towards the other."""
    mine, other = fitted.config.get_text_config(), original.config.get_text_config()
    for name, word in (("vocab_size", "vocabulary"), ("hidden_size", "hidden size")):
        if getattr(mine, name) != getattr(other, name):
            raise ModelError(
                f"{request.against} has a {word} of {getattr(other, name)}, {request.model} one of"
                f" {getattr(mine, name)}; --against takes the original that it was fitted from"
            )
    if mine.model_type != other.model_type or fitted.task != original.task:
        raise ModelError(
            f"{request.against} is a {other.model_type} model, {request.model} a"
            f" {mine.model_type}; --against takes the original that it was fitted from"
        )


def check_names(request: HealRequest) -> None:
    """Raise ``AdapterError`` for an optimizer that is not there or amounts that mean nothing."""
    check_optimizer(request.optimizer, request.device)
    if request.minutes is not None and request.steps is not None:
        raise AdapterError("--minutes and --steps: give one of them")
    if request.minutes is not None and not 0 < request.minutes < float("inf"):
        raise AdapterError(f"--minutes {request.minutes}: a positive number is needed")
    if request.steps is not None and request.steps < 1:
        raise AdapterError(f"--steps {request.steps}: at least 1 is needed")
    if request.rate is not None and not 0 < request.rate < float("inf"):
        raise AdapterError(f"--rate {request.rate}: a positive number is needed")


def train_job(job: HealJob) -> Outcome:
    """Train a student of the fitted folder, or go on where a killed run was."""
    began = time.monotonic()
    request, progress = job.request, job.progress
    held = stored_run(job)
    with progress.stage("load the fitted model", 2, "parts") as stage:
        student = load_student(
            job.fitted,
            job.skeleton,
            device=request.device,
            trust_remote_code=request.trust_remote_code,
        )
        stage.advance()
        chosen = train_what_fits(
            student,
            job.skeleton,
            request.adapter,
            tables=request.tables,
            seed=request.seed,
            sample={"input_ids": job.texts.selection.ids[: job.rows_per_step].to(request.device)},
        )
        keep_memory_low(student, job.skeleton, job.batch_tokens)
        stage.advance()
    blocks = student.blocks_of_trained(job.skeleton.block_path)
    optimizer = optimizer_named(request.optimizer, student.trained, blocks)
    selection = taught(job, "selection", job.texts.selection)
    steps = held["steps"] if held else request.steps
    if steps is None:
        steps = steps_of_minutes(job, student, selection)
    write_json_atomic(job.work / RUN_FILE, {"identity": job.identity, "steps": steps})
    rows = min(len(job.texts.calibration.ids), steps * job.rows_per_step)
    text = taught(job, "training", first_rows(job.texts.calibration, rows))

    def gradients(step: int) -> float:
        chosen_rows = rows_of_step(step, rows, job.rows_per_step, request.seed)
        return text.gradients(student, chosen_rows)

    training = Training(
        student=student,
        optimizer=optimizer,
        gradients=gradients,
        judge=partial(selection.judge, student),
        folder=job.work,
        settings=HealSettings(steps=steps, rate=request.rate or RATE, checks=CHECKS),
    )
    with progress.stage("heal", steps, "steps") as stage:
        healed = train(training, stage)
    return Outcome(
        healed=healed,
        chosen=tuple(chosen),
        student=student,
        steps=steps,
        optimizer_bytes=optimizer.state_bytes(),
        seconds=time.monotonic() - began,
    )


def stored_run(job: HealJob) -> dict[str, Any] | None:
    """What a killed run of the same inputs left; of others it is removed."""
    path = job.work / RUN_FILE
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = {}
    if held.get("identity") == job.identity:
        return held
    if job.work.exists():
        shutil.rmtree(job.work)
    job.work.mkdir(parents=True)
    return None


def taught(job: HealJob, name: str, tokens: TokenSet) -> TaughtText:
    """A text with the original's last hidden states, computed once."""
    stream = job.original_stream()
    inputs = Inputs.of_tokens(tokens.ids)
    parts = len(stream.blocks)
    with job.progress.stage(f"original on {name} text", parts, "blocks") as stage:
        final = run_to_file(stream, inputs, job.work / f"{name}.bin", stage.advance)
    causal = stream.skeleton.task == "causal-lm"
    return TaughtText(
        inputs=inputs,
        hidden=final.file,
        head=stream.head(final.stem, inputs.name),
        logits=causal,
        vocabulary=int(stream.skeleton.config.get_text_config().vocab_size) if causal else 0,
        device=job.request.device,
    )


def first_rows(tokens: TokenSet, rows: int) -> TokenSet:
    """The first windows of a text."""
    return replace(tokens, ids=tokens.ids[:rows])


def steps_of_minutes(job: HealJob, student: Student, selection: TaughtText) -> int:
    """Steps that fit the minutes asked, by one timed probe on the selection text."""
    minutes = job.request.minutes or DEFAULT_MINUTES
    rows = torch.arange(min(job.rows_per_step, selection.inputs.rows))

    def step() -> None:
        selection.gradients(student, rows)
        for item in student.trained.values():
            item.offset.grad = None

    original = job.original_stream()
    some = Inputs.of_tokens(selection.inputs.values[: len(rows)])
    probe = job.work / "probe.bin"
    with job.progress.stage("time a step"):
        step_seconds = timed_again(step)
        check_seconds = timed(partial(selection.judge, student))
        taught_seconds = timed(partial(run_to_file, original, some, probe))
    probe.unlink()
    pace = Pace(
        step=step_seconds,
        check=check_seconds,
        taught_row=taught_seconds / len(rows),
        rows_per_step=job.rows_per_step,
        rows=len(job.texts.calibration.ids),
        checks=CHECKS + 1,
    )
    return pace.steps_within(60 * minutes)


@dataclass(frozen=True)
class Changes:
    """What a folder holds otherwise than before."""

    replaced: dict[str, Tensor] = field(default_factory=dict)
    """Tensors by name, new ones among them."""
    removed: set[str] = field(default_factory=set)
    specs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Site id -> format spec."""


def put_best(outcome: Outcome) -> bool:
    """Bring the best state back; False where the start was best."""
    best = outcome.healed.best
    with torch.no_grad():
        for name, item in outcome.student.trained.items() if best else ():
            item.offset.copy_(best[name])
    return bool(best)


def changes_of(student: Student) -> Changes:
    """What the state of a student changes in its folder."""
    found = Changes()
    for name, item in student.trained.items():
        if not name.startswith(ADAPTER_PREFIX):
            found.replaced[name] = item.stored()
    for attachment in student.attachments:
        path = attachment.host.path
        made = attachment.replacement(student.dtypes.get(f"{path}.weight", torch.float32))
        found.replaced.update({f"{path}.{name}": t for name, t in made.tensors.items()})
        if made.spec is not None:
            found.specs[attachment.host.site.id] = made.spec
            kept = {f"{path}.{name}" for name in (*made.tensors, "bias")}
            found.removed.update({n for n in student.dtypes if n.startswith(f"{path}.")} - kept)
    return found


def write_healed(job: HealJob, outcome: Outcome, target: Path, left: tuple[str, ...]) -> int:
    """Fill the empty folder ``target``; returns the bytes of its safetensors files."""
    changes = changes_of(outcome.student) if put_best(outcome) else Changes()
    with job.progress.stage("write the folder", expected_seconds=1.0):
        return write_changes(job.checkpoint, changes, target, left)


def write_changes(
    checkpoint: Checkpoint, changes: Changes, target: Path, left: tuple[str, ...]
) -> int:
    """A folder with some changes, into an empty one."""
    return rewrite_folder(
        checkpoint,
        target,
        changes.replaced,
        removed=changes.removed,
        specs=changes.specs,
        left=left,
    )
