"""What a step trains on: rows of a text in a seeded order, and the original's outputs for them.

The original runs once over the text, block by block; its last hidden states are on disk, and only
its head is in memory while the student is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.heal.objective import distance
from blockwright.heal.student import Student
from blockwright.stream import ActivationFile, Inputs

LARGEST_LOGIT_BYTES = 64 * 2**20
"""Of one micro-batch's logits."""


@dataclass(frozen=True)
class TaughtText:
    """A text with the original's last hidden states."""

    inputs: Inputs
    hidden: ActivationFile
    head: Callable[[Tensor, Tensor], Tensor]
    """Hidden states [B, T, H] and their inputs -> what the student shall give."""
    logits: bool
    """Whether outputs are logits."""
    vocabulary: int
    device: str

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch: few enough logits, at least one row."""
        length = self.inputs.values.shape[1]
        rows = LARGEST_LOGIT_BYTES // (4 * max(1, self.vocabulary) * length)
        return max(1, min(self.inputs.batch_size, rows))

    def pieces(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of some rows, a micro-batch at a time."""
        for some in rows.split(self.rows_at_once):
            ids = self.inputs.values[some].to(self.device)
            hidden = torch.cat([self.hidden.read(row, row + 1) for row in some.tolist()])
            yield ids, self.head(hidden.to(self.device), ids)

    def loss(self, student: Student, ids: Tensor, target: Tensor) -> Tensor:
        """The student's distance on a micro-batch."""
        outputs = student.outputs({self.inputs.name: ids})
        return distance(outputs, target, logits=self.logits)

    def gradients(self, student: Student, rows: Tensor) -> float:
        """Add gradients of the mean loss over some rows; the loss."""
        total = 0.0
        for ids, target in self.pieces(rows):
            student.place()
            loss = self.loss(student, ids, target) * (len(ids) / len(rows))
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def judge(self, student: Student) -> float:
        """The mean loss over all rows, of the values in place."""
        rows = torch.arange(self.inputs.rows)
        parts = [
            self.loss(student, ids, target).item() * len(ids) for ids, target in self.pieces(rows)
        ]
        return sum(parts) / len(rows)


def rows_of_step(step: int, rows: int, per_step: int, seed: int) -> Tensor:
    """The rows of a step, from 1: all of them in a seeded order before one comes again."""
    first = (step - 1) * per_step
    wanted = range(first, first + per_step)
    orders: dict[int, Tensor] = {}
    found = []
    for place in wanted:
        turn, position = divmod(place, rows)
        if turn not in orders:
            draw = torch.Generator().manual_seed(seed * 1_000_003 + turn)
            orders[turn] = torch.randperm(rows, generator=draw)
        found.append(int(orders[turn][position]))
    return torch.tensor(found)
