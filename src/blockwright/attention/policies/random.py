"""Random: tiles drawn at random, the floor under every comparison.

Paper:   none; a baseline.
Idea:    own tile, first tile, and others drawn from a seed.  A policy that does not beat it at
         equal density has learnt nothing from the scores.
Checked: recall of the planted presets, tests/claims/test_attention_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.picking import own_and_first, pick_top
from blockwright.attention.policy import Choice, Context, Knob, Policy


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """``keep`` tiles per list, from ``Context.seed``."""

    paper: ClassVar[str] = "baseline"
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    query_block: int = 128
    key_block: int = 128
    keep: int = 8

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Scores from the seed."""
        blocks = (self.query_block, self.key_block)
        status, forced = own_and_first(context.layout, blocks)
        generator = torch.Generator().manual_seed(context.seed)
        scores = torch.rand((*q.shape[:2], *status.visible.shape[2:]), generator=generator)
        scores = scores.to(q.device)
        return Choice(selection=pick_top(scores, status.visible, forced, self.keep, blocks=blocks))


POLICY = Random
