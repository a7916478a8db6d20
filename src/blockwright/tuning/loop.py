"""Trains some tensors of a block so that its outputs come close to given ones.

Loss:    sum((out - Y)^2) / sum(Y^2), see ``relative_error``.
Optimizer: Adam, the rate falling as a cosine to a twentieth; fp32; the order of batches is seeded.
Guard:   a fifth of the batches is never trained on.  The state that is returned has the least loss
         on them among the start and ``checks`` moments of training: it is never worse than the
         start there.
Memory:  one batch with the activations of one block; batches are asked for one at a time.
Shapes:  B sequences of a batch, T tokens, H hidden size.
Raises:  NumericalError, naming the block, when even the start has no finite loss, or when there
         are too few batches to keep one aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.tuning.trained import Trained

HELD_EVERY = 5
"""Every fifth batch judges, the others train."""
FINAL_RATE = 1 / 20
"""Last learning rate, as a fraction of the first."""
BETAS = (0.9, 0.95)

Values = Mapping[str, Tensor]
"""Current values of the trained tensors, fp32, by name."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One batch."""

    inputs: Tensor
    """[B, T, H], what the compressed prefix produces."""
    target: Tensor
    """[B, T, H], what the block shall give."""
    arguments: Any = None
    """How the block is called beside its inputs."""
    original_inputs: Tensor | None = None
    """Inputs of the original model, for ``input_mix``."""
    second_target: Tensor | None = None
    """Another target, for ``second_target_share``."""


Forward = Callable[[Values, Tensor, Any], Tensor]
"""Runs the block: values, inputs, ``Example.arguments`` -> outputs."""


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """How long and how fast."""

    steps: int
    rate: float
    """First learning rate: the change of an element per step, relative to its size."""
    checks: int = 4
    """How often the held batches are asked."""
    seed: int = 0
    input_mix: float = 0.0
    """Probability that an element of the input is the original's (QDrop)."""
    second_target_share: float = 0.0
    """Weight of the second target; the first has the rest."""
    window: int = 1
    """Blocks behind which outputs are compared; the first of them is tuned."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out; losses are means over the held batches."""

    tensors: Mapping[str, Tensor]
    """In their stored dtypes."""
    start_loss: float
    loss: float
    step: int
    """Step of the returned state; 0 = the start was best."""


def tune(
    forward: Forward,
    trained: Mapping[str, Trained],
    batches: Sequence[Example],
    settings: TuningSettings,
    *,
    where: str,
    extra_loss: Callable[[Values, float], Tensor] | None = None,
) -> Tuned:
    """Train, and return the best state on the held batches.

    ``batches`` may read from disk when indexed.  ``extra_loss`` (values, progress 0..1) is added to
    the loss while training; it does not judge.
    """
    training, held = split_batches(len(batches), where)
    start = held_loss(forward, trained, batches, held)
    if not math.isfinite(start):
        raise NumericalError(f"{where}: the block has no finite loss before it is tuned")
    best = Tuned(tensors=_snapshot(trained), start_loss=start, loss=start, step=0)
    optimizer = torch.optim.Adam(
        [{"params": [item.offset], "pace": item.pace} for item in trained.values()], betas=BETAS
    )
    draw = torch.Generator().manual_seed(settings.seed)
    checked = check_steps(settings)
    for step, index in enumerate(shuffled(training, settings, draw), start=1):
        loss = training_loss(forward, trained, batches[index], settings, draw)
        if extra_loss is not None:
            loss = loss + extra_loss(_values(trained), step / settings.steps)
        if not torch.isfinite(loss):
            break
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * rate_at(step, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in checked:
            now = held_loss(forward, trained, batches, held)
            if now < best.loss:
                best = Tuned(tensors=_snapshot(trained), start_loss=start, loss=now, step=step)
    return best


def split_batches(count: int, where: str) -> tuple[list[int], list[int]]:
    """Indices of the batches that train, and of those that judge."""
    if count < 2:
        raise NumericalError(f"{where}: tuning needs two batches of calibration text, got {count}")
    held = list(range(HELD_EVERY - 1, count, HELD_EVERY)) or [count - 1]
    return [index for index in range(count) if index not in held], held


def shuffled(
    training: Sequence[int], settings: TuningSettings, draw: torch.Generator
) -> Iterator[int]:
    """Batches in a seeded order, all of them before one comes again."""
    left = settings.steps
    while left > 0:
        order = torch.randperm(len(training), generator=draw)[:left]
        yield from (training[place] for place in order.tolist())
        left -= len(order)


def check_steps(settings: TuningSettings) -> set[int]:
    """Steps after which the held batches are asked: equally far apart, the last one among them."""
    checks = max(1, settings.checks)
    return {math.ceil(settings.steps * (i + 1) / checks) for i in range(checks)}


def rate_at(step: int, settings: TuningSettings) -> float:
    """The learning rate of a step."""
    return settings.rate * falling(step, settings.steps)


def falling(step: int, steps: int) -> float:
    """Cosine from 1 at the first step to a twentieth at the last."""
    progress = (step - 1) / max(1, steps - 1)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error over the target's squared size, both summed over the batch, in fp32."""
    target = target.float()
    error = (output.float() - target).square().sum()
    return error / target.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def training_loss(
    forward: Forward,
    trained: Mapping[str, Trained],
    example: Example,
    settings: TuningSettings,
    draw: torch.Generator,
) -> Tensor:
    """The loss of one batch, with the input mix and the second target where they are asked for."""
    inputs = example.inputs
    if settings.input_mix:
        if example.original_inputs is None:
            raise ValueError("input_mix needs examples with original_inputs")
        chance = torch.rand(inputs.shape, generator=draw).to(inputs.device)
        inputs = torch.where(chance < settings.input_mix, example.original_inputs, inputs)
    output = forward(_values(trained), inputs, example.arguments)
    loss = relative_error(output, example.target)
    share = settings.second_target_share
    if share:
        if example.second_target is None:
            raise ValueError("second_target_share needs examples with second_target")
        loss = (1 - share) * loss + share * relative_error(output, example.second_target)
    return loss


@torch.no_grad()
def held_loss(
    forward: Forward,
    trained: Mapping[str, Trained],
    batches: Sequence[Example],
    held: Sequence[int],
) -> float:
    """Mean loss over the held batches, of the values as they would be stored."""
    values = _values(trained)
    losses = []
    for index in held:
        example = batches[index]
        output = forward(values, example.inputs, example.arguments)
        losses.append(relative_error(output, example.target).item())
    return sum(losses) / len(losses)


def _values(trained: Mapping[str, Trained]) -> dict[str, Tensor]:
    return {name: item.value() for name, item in trained.items()}


def _snapshot(trained: Mapping[str, Trained]) -> dict[str, Tensor]:
    return {name: item.stored() for name, item in trained.items()}
