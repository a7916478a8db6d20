"""The trainer's loop, shared by the bundled model's training and by recipes on any model.

Loss:    cross-entropy of the next token unless the recipe has another, logits under bfloat16
         autocast, parameters in fp32.
Optimizer: AdamW, its moments in fp32 or in 8 bits, gradients clipped to a norm of 1.
Resume:  a checkpoint holds the model with the recipe's buffers, the optimizer and the step; a run
         that was killed ends with the bytes of one that was not.
Raises:  TrainingError for a checkpoint of other settings, or a loss that is not finite.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.checkpoint import partial_path
from blockwright.errors import TrainingError
from blockwright.progress import Progress, SilentProgress
from blockwright.training.losses import token_losses
from blockwright.training.optimizers import new_optimizer
from blockwright.training.places import under_recipe
from blockwright.training.recipe import Moment, TrainedMatrix, TrainingRecipe
from blockwright.training.settings import TrainingSettings
from blockwright.training.windows import TokenStream

PROBE_TOKENS = 64
"""Tokens to find FFNs with."""
LARGEST_NORM = 1.0
"""Of all gradients together."""
Entry = dict[str, float]
"""What is noted at a check: step, tokens, train_loss, seconds, and what the judge says."""
Judge = Callable[[PreTrainedModel], Mapping[str, float]]
"""Figures of the model as it is."""


def no_judge(model: PreTrainedModel) -> Mapping[str, float]:
    """Says nothing."""
    return {}


def train(
    model: PreTrainedModel,
    stream: TokenStream,
    settings: TrainingSettings,
    *,
    recipe: TrainingRecipe | None = None,
    only: str = "*",
    checkpoint: Path | None = None,
    judge: Judge = no_judge,
    say: Callable[[Entry], None] | None = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """Train the model in place, fp32, resuming from ``checkpoint`` where it exists; its log.

    The recipe works on the linears whose paths match ``only``; at the end their weights are what it
    leaves, in ordinary linears.
    """
    if recipe is not None and settings.eight_bit:
        raise TrainingError("training: recipes change moments in place; leave eight_bit out")
    probe = stream.window(0, settings.batch_tokens)[:PROBE_TOKENS].unsqueeze(0).to(model.device)
    with ExitStack() as inside:
        inside.enter_context(torch.random.fork_rng())
        matrices = inside.enter_context(under_recipe(model, recipe, probe, only))
        run = _Run(model, stream, settings, recipe, matrices, checkpoint, f"{recipe} on {only}")
        run.resume()
        stage = inside.enter_context(
            (progress or SilentProgress()).stage("train", settings.steps - run.step, "steps")
        )
        while run.step < settings.steps:
            loss = run.advance()
            if run.step % settings.check_every == 0 or run.step == settings.steps:
                run.note(loss, judge)
                run.save()
                if say is not None:
                    say(run.log[-1])
            stage.advance()
        with torch.no_grad():
            for matrix in matrices:
                matrix.finish()
    model.eval()
    return run.log


@dataclass
class _Run:
    """A training under way."""

    model: PreTrainedModel
    stream: TokenStream
    settings: TrainingSettings
    recipe: TrainingRecipe | None
    matrices: list[TrainedMatrix]
    checkpoint: Path | None
    recipe_name: str
    step: int = 0
    log: list[Entry] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = new_optimizer(self.model, self.settings)
        self.began = time.monotonic()
        self.model.train()

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the weights."""
        return {**asdict(self.settings), "recipe": self.recipe_name, "text": self.stream.digest}

    def advance(self) -> float:
        """One step; its loss."""
        moment = Moment(step=self.step, steps=self.settings.steps)
        torch.manual_seed(self.settings.seed + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.step)
        self._tell(lambda matrix: matrix.before_step(moment))
        loss = self._loss(moment)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"training: the loss of step {self.step} is not finite; use a lower learning rate"
            )
        loss.backward()
        self._tell(lambda matrix: matrix.after_backward(moment))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._tell(lambda matrix: matrix.after_step(moment, self._remembered(matrix)))
        self.step += 1
        return loss.item()

    def _loss(self, moment: Moment) -> Tensor:
        if self.recipe is None:
            return token_losses(self.model, self._batch()).mean()
        return self.recipe.loss(self.model, self._batch(), self.matrices, moment)

    def _batch(self) -> Tensor:
        count, length = self.settings.batch_tokens, self.settings.length_at(self.step)
        tokens = self.stream.window(self.step * count, count)[: count // length * length]
        return tokens.view(-1, length).to(self.model.device)

    @torch.no_grad()
    def _tell(self, call: Callable[[TrainedMatrix], None]) -> None:
        for matrix in self.matrices:
            call(matrix)

    def _remembered(self, matrix: TrainedMatrix) -> dict[str, Tensor]:
        """The optimizer's moments of a weight."""
        state = self.optimizer.state.get(matrix.weight, {})
        return {key: value for key, value in state.items() if value.shape == matrix.weight.shape}

    def note(self, loss: float, judge: Judge) -> None:
        """Write down where training is."""
        spent = self.seconds + time.monotonic() - self.began
        entry: Entry = {"step": self.step, "tokens": self.step * self.settings.batch_tokens}
        entry |= {"train_loss": loss, **judge(self.model), "seconds": round(spent, 1)}
        self.log.append(entry)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.checkpoint is None:
            return
        state = {
            "made_by": json.dumps(self.made_by),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "log": self.log,
        }
        partial = partial_path(self.checkpoint)
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint where there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["made_by"] != json.dumps(self.made_by):
            raise TrainingError(
                f"{self.checkpoint} was made with another recipe, text or other settings; repeat"
                " them, delete it, or write to another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.log = state["step"], state["log"]
        self.seconds = self.log[-1]["seconds"] if self.log else 0.0


@torch.no_grad()
def mean_loss(model: PreTrainedModel, tokens: Tensor, length: int, batch_tokens: int) -> float:
    """Mean nats per token over a text cut into sequences."""
    windows = tokens[: len(tokens) // length * length].view(-1, length).to(model.device)
    was_training = model.training
    model.eval()
    losses = [token_losses(model, batch) for batch in windows.split(batch_tokens // length or 1)]
    model.train(was_training)
    mean = float(torch.cat(losses).mean())
    if not math.isfinite(mean):
        raise TrainingError("training: the loss on held-out text is not finite")
    return mean
