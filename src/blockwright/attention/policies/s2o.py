"""S2O: keys one by one in order of importance, until more of them add almost nothing.

Paper:   "S2O: Early Stopping for Sparse Attention via Online Permutation", 2026.
Idea:    nothing is moved: each query tile has a list of single keys, most important first.  The
         softmax sum grows group by group, and when a whole group adds almost nothing, the tile is
         finished.  If the order were exact, the dropped mass would be at most eps times the
         groups left.  Tiles whose queries disagree are ordered badly by their mean.

Equations -> code
    u[a, j] = scale * mean(q of a) . k_j               choose
    stop a when mean_rows(g_t / l_t) < eps             Stop; stopping.attend_until
Shapes:  lists of at most ``cap`` N keys per query tile; groups of 64.
Cost:    1 / (2 block) of dense to order; attention at the density reached.
Differs from the paper: reconstructed from its abstract.  1. no reordering of queries.  2. groups
         are staged calls merged by log-sum-exp, not one kernel's loop.
Checked: error and density on scattered keys, density falls with eps,
         tests/claims/test_attention_order.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import align, grouped_scores
from blockwright.attention.picking import ordered_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy, Stop
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status

GROUP = 64
"""Keys between two looks at the sum."""


@dataclass(frozen=True, kw_only=True)
class S2o(Policy):
    """At most ``cap`` of the keys besides the own tile's; ``worst_row`` is the safe way to stop."""

    paper: ClassVar[str] = "S2O: Early Stopping for Sparse Attention via Online Permutation, 2026"
    knob: ClassVar[Knob | None] = Knob(name="cap", least=0.0, most=1.0)
    block: int = 64
    cap: float = 0.25
    eps: float = 0.01
    worst_row: bool = False

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """The own tile's keys, then the others by the mean query."""
        layout, keys = context.layout, k.shape[2]
        status = tile_status(layout, self.block, 1)
        u = context.scale * grouped_scores(pooled_mean(q, layout.q_position, self.block), k)
        u, visible, own = align(u, status.visible, status.own)
        must = own.sum(-1)
        cap = (self.cap * (layout.k_position >= 0).sum(-1, keepdim=True)).round().long()
        longest = min(keys, int((must + cap).max()))
        ranked = u.masked_fill(own, torch.inf).masked_fill(~visible, -torch.inf)
        count = torch.minimum(must + cap, visible.sum(-1))
        selection = Selection(
            query_block=self.block,
            key_block=1,
            index=ordered_top(ranked, longest),
            count=count.clamp(max=longest).expand(u.shape[:3]),
        )
        stop = Stop(below=self.eps, part=GROUP, worst_row=self.worst_row)
        return Choice(selection=selection, stop=stop)


POLICY = S2o
