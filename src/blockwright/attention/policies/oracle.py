"""Oracle: the tiles that truly hold most attention mass, the ceiling of every comparison.

Paper:   none; a baseline.
Idea:    compute the whole attention matrix, sum it over tiles, keep the greatest.  No policy that
         visits whole tiles can have a greater recall at the same count per list.
Cost:    more than dense attention: for measuring only.
Checked: recall of the planted presets, tests/claims/test_attention_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.attention.mass import tile_mass
from blockwright.attention.picking import own_and_first, pick_top
from blockwright.attention.policy import Choice, Context, Knob, Policy


@dataclass(frozen=True, kw_only=True)
class Oracle(Policy):
    """``keep`` tiles per list."""

    paper: ClassVar[str] = "baseline"
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    query_block: int = 128
    key_block: int = 128
    keep: int = 8

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Scores are the true masses."""
        blocks = (self.query_block, self.key_block)
        status, forced = own_and_first(context.layout, blocks)
        mass = tile_mass(q, k, context.layout, context.scale, blocks)
        return Choice(selection=pick_top(mass, status.visible, forced, self.keep, blocks=blocks))


POLICY = Oracle
