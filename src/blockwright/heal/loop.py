"""The training loop: so many steps, the best state on the selection text kept, resumable.

Rate:    rises over the first 3% of the steps, then falls as a cosine to a twentieth.
Guard:   the loss on the selection text is asked ``checks`` times; the best state among the start
         and these moments comes back.  A loss or gradient that is not finite rolls back to the last
         stored state, at half the rate; after three such the best state so far comes back.
Resumes: the state is stored at every check and every ``SAVE_EVERY`` steps.  Batches depend on the
         step alone, so that a killed run ends with the same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.errors import ModelError
from blockwright.heal.state import Progress, State
from blockwright.heal.student import Student
from blockwright.progress import Stage
from blockwright.tuning.loop import falling
from blockwright.tuning.optimizers import HealOptimizer

SAVE_EVERY = 50
MOST_ROLLBACKS = 3
WARM_UP = 0.03
LARGEST_NORM = 1.0
"""Gradients are clipped to this norm of what is trained, in its own units."""


@dataclass(frozen=True, kw_only=True)
class HealSettings:
    """How long and how fast."""

    steps: int
    rate: float
    checks: int = 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run of healing works with."""

    student: Student
    optimizer: HealOptimizer
    gradients: Callable[[int], float]
    """Add the gradients of a step's batch, and give its loss."""
    judge: Callable[[], float]
    """The loss on the selection text."""
    folder: Path
    """Where the state is stored."""
    settings: HealSettings


@dataclass(frozen=True, kw_only=True)
class Healed:
    """What came out."""

    best: Mapping[str, Tensor]
    """What is trained, as the optimizer had moved it; empty: the start was best."""
    progress: Progress


def train(training: Training, stage: Stage) -> Healed:
    """Train from the stored state, or from the start."""
    state = State.read(training.folder) or _begin(training)
    restore(training, state)
    stage.advance(state.progress.step)
    stage.advance(0)
    checked = check_steps(training.settings)
    rolled = 0
    while state.progress.step < training.settings.steps and rolled <= MOST_ROLLBACKS:
        following: State | None = None
        for step in steps_until_saved(state.progress.step, training.settings.steps, checked):
            if not _stepped(training, step, state.progress.rollbacks + rolled):
                stage.advance(state.progress.step - step + 1)
                break
            stage.advance()
        else:
            following = _saved(training, state, step, rolled, judged=step in checked)
            stage.advance(0 if following else state.progress.step - step)
        if following is not None:
            state, rolled = following, 0
            continue
        rolled += 1
        stage.note(_rollback_note(step, state.progress.step, rolled))
        restore(training, state)
    progress = replace(state.progress, rollbacks=state.progress.rollbacks + rolled)
    return Healed(best=state.best, progress=progress)


def _begin(training: Training) -> State:
    with torch.no_grad():
        training.student.place()
        start = training.judge()
    if not math.isfinite(start):
        raise ModelError(
            "the fitted model has no finite loss on the selection text before it is healed; it is"
            " damaged: fit it again"
        )
    progress = Progress(start_loss=start, best_loss=start, losses=((0, start),))
    state = State(progress=progress, moved=_moved(training), optimizer=_optimizer(training))
    state.write(training.folder)
    return state


def restore(training: Training, state: State) -> None:
    """Go back to a state."""
    with torch.no_grad():
        for name, item in training.student.trained.items():
            item.offset.copy_(state.moved[name])
    training.optimizer.load(state.optimizer)
    training.optimizer.clear()


def steps_until_saved(done: int, steps: int, checked: set[int]) -> Iterator[int]:
    """The next steps, up to the one behind which the state is stored."""
    for step in range(done + 1, steps + 1):
        yield step
        if step in checked or step % SAVE_EVERY == 0:
            return


def check_steps(settings: HealSettings) -> set[int]:
    """Steps behind which the selection text is asked: equally far apart, the last among them."""
    checks = max(1, min(settings.checks, settings.steps))
    return {math.ceil(settings.steps * (i + 1) / checks) for i in range(checks)}


def rate_of(step: int, settings: HealSettings) -> float:
    """The learning rate of a step."""
    warm = max(1, math.ceil(WARM_UP * settings.steps))
    return settings.rate * min(1.0, step / warm) * falling(step, settings.steps)


def _stepped(training: Training, step: int, rollbacks: int) -> bool:
    """One step; False, with nothing moved, where the loss or a gradient is not finite."""
    training.optimizer.clear()
    loss = training.gradients(step)
    norm = gradient_norm(training.student)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return False
    clip_gradients(training.student, norm)
    training.optimizer.step(rate_of(step, training.settings) / 2**rollbacks)
    return True


@torch.no_grad()
def gradient_norm(student: Student) -> float:
    """Of everything that is trained."""
    found = [item.offset.grad for item in student.trained.values() if item.offset.grad is not None]
    return math.sqrt(sum(g.float().square().sum().item() for g in found))


@torch.no_grad()
def clip_gradients(student: Student, norm: float) -> None:
    """Shrink gradients of a norm above ``LARGEST_NORM``."""
    if norm > LARGEST_NORM:
        for item in student.trained.values():
            if item.offset.grad is not None:
                item.offset.grad.mul_(LARGEST_NORM / norm)


def _saved(
    training: Training, state: State, step: int, rolled: int, *, judged: bool
) -> State | None:
    """The state behind a step, judged if it is due, and stored; None, with nothing stored, where
    its loss is not finite.
    """
    progress = replace(state.progress, step=step, rollbacks=state.progress.rollbacks + rolled)
    best = state.best
    if judged:
        with torch.no_grad():
            training.student.place()
            loss = training.judge()
        if not math.isfinite(loss):
            return None
        progress = replace(progress, losses=(*progress.losses, (step, loss)))
        if loss < progress.best_loss:
            progress = replace(progress, best_loss=loss, best_step=step)
            best = _moved(training)
    moved, optimizer = _moved(training), _optimizer(training)
    saved = State(progress=progress, moved=moved, optimizer=optimizer, best=best)
    saved.write(training.folder)
    return saved


def _moved(training: Training) -> dict[str, Tensor]:
    return {name: i.offset.detach().clone() for name, i in training.student.trained.items()}


def _optimizer(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.optimizer.tensors().items()}


def _rollback_note(step: int, back: int, rolled: int) -> str:
    what = f"step {step}: the loss is not finite; back to the state behind step {back}"
    if rolled > MOST_ROLLBACKS:
        return f"{what}, and no further: it was tried {MOST_ROLLBACKS} times"
    return f"{what}, at half the rate"
