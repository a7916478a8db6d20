"""bcd: Adam on a few blocks at a time, those that promise most progress.

Paper:   Nutini, Laradji, Schmidt, "Let's Make Block Coordinate Descent Converge Faster", JMLR 2022:
         its Gauss-Southwell-Lipschitz rule.
Idea:    A gradient promises little where the curvature is large.  Blocks are compared by |g|^2 / L,
         and only those that move keep states, so that states shrink with the number of blocks that
         move.

Equations -> code     score_b = |g_b|^2 / L_b                            chosen
                      L_b = |g_b(w) - g_b(w')| / |w_b - w'_b|, smoothed  _see_curvature
Shapes:  B blocks of what is trained: the model's blocks, and all that is outside of them.
Units:   memory 16 bytes for each number of a block that moves: two moments, and where it was.
Differs from the paper: gradients are of batches, not of the whole loss; every block moves once
         before scores decide, because L is not known before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from blockwright.tuning.optimizers.first_order import Adam, HealOptimizer
from blockwright.tuning.trained import Trained

RESELECT = 20
"""Steps between two choices."""
MOVING = 0.25
"""Share of the blocks that move."""
SMOOTHING = 0.9


class BlockDescent(HealOptimizer):
    """Adam on the chosen blocks."""

    def __init__(self, trained: Mapping[str, Trained], blocks: Mapping[str, str]) -> None:
        """``blocks``: name of what is trained -> its block."""
        super().__init__(trained)
        self._members: dict[str, list[str]] = defaultdict(list)
        for name in self.trained:
            self._members[blocks[name]].append(name)
        self.order = sorted(self._members)
        self.moving = max(1, math.ceil(MOVING * len(self.order)))
        self._curvature = torch.full((len(self.order),), math.nan)
        self._moved = torch.zeros(len(self.order), dtype=torch.int64)
        self._steps = 0
        self._chosen: list[int] = []
        self._adam = Adam({})
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        if self._steps % RESELECT == 0:
            self._choose(self.chosen())
        self._see_curvature()
        for name in self._names():
            item = self.trained[name]
            gradient = item.offset.grad
            if gradient is not None:
                self._before[name] = item.offset.detach().clone(), gradient.detach().clone()
        self._steps += 1
        self._adam.step(rate)

    @torch.no_grad()
    def chosen(self) -> list[int]:
        """Blocks to move next: those that never moved, then the best by |g|^2 / L."""
        fresh = [b for b in range(len(self.order)) if not self._moved[b]]
        scores = [self._squared(b) / max(self._known(b), 1e-30) for b in range(len(self.order))]
        best = sorted(range(len(self.order)), key=lambda b: (b not in fresh, -scores[b], b))
        return sorted(best[: self.moving])

    def _known(self, block: int) -> float:
        value = self._curvature[block].item()
        return value if math.isfinite(value) else 1.0

    def _squared(self, block: int) -> float:
        found = (self.trained[name].offset.grad for name in self._members[self.order[block]])
        return sum(g.float().square().sum().item() for g in found if g is not None)

    def _choose(self, chosen: list[int]) -> None:
        self._chosen = chosen
        self._moved[chosen] += 1
        self._adam = Adam({name: self.trained[name] for name in self._names()})
        self._before = {}

    def _names(self) -> list[str]:
        return [name for b in self._chosen for name in self._members[self.order[b]]]

    def _see_curvature(self) -> None:
        """The secant of every block that moved in the last step."""
        for block in self._chosen:
            steps = changes = 0.0
            for name in self._members[self.order[block]]:
                gradient = self.trained[name].offset.grad
                if name in self._before and gradient is not None:
                    was, had = self._before[name]
                    steps += (self.trained[name].offset - was).square().sum().item()
                    changes += (gradient - had).square().sum().item()
            if steps > 0:
                secant, known = math.sqrt(changes / steps), self._curvature[block].item()
                fresh = not math.isfinite(known)
                mixed = secant if fresh else SMOOTHING * known + (1 - SMOOTHING) * secant
                self._curvature[block] = mixed

    def tensors(self) -> dict[str, Tensor]:
        found = {
            "steps": torch.tensor([self._steps]),
            "curvature": self._curvature,
            "moved": self._moved,
            "chosen": torch.tensor(self._chosen, dtype=torch.int64),
        }
        found |= {f"adam/{name}": tensor for name, tensor in self._adam.tensors().items()}
        for name, (was, had) in self._before.items():
            found |= {f"was/{name}": was, f"had/{name}": had}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._steps = int(tensors["steps"])
        self._curvature, self._moved = tensors["curvature"].clone(), tensors["moved"].clone()
        self._chosen = tensors["chosen"].tolist()
        self._adam = Adam({name: self.trained[name] for name in self._names()})
        self._adam.load(_below("adam/", tensors))
        had = _below("had/", tensors)
        self._before = {name: (was, had[name]) for name, was in _below("was/", tensors).items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}
