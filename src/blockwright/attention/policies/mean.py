"""Mean: tiles whose mean key the tile's mean query likes best.

Paper:   pooled scores as in H. Jiang et al., "MInference 1.0", NeurIPS 2024 (block-sparse heads),
         and J. Yuan et al., "Native Sparse Attention", ACL 2025 (selection by compressed keys).
Idea:    if queries and keys of one tile are alike, their means tell the tile's mass.  It fails
         where few hot keys drown in a tile's mean.

Equations -> code
    s(a, b) = scale * mean(q of a) . mean(k of b)     choose
Shapes:  a query tile, b key tile.
Cost:    1 / (2 Bq Bk) of dense.
Checked: 0.3 above random in recall on planted data, tests/claims/test_attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.attention.heads import grouped_scores, per_group
from blockwright.attention.picking import own_and_first, pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy


@dataclass(frozen=True, kw_only=True)
class Mean(Policy):
    """``keep`` tiles per list; ``shared``: one list per key/value head."""

    paper: ClassVar[str] = (
        "Jiang et al., MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via "
        "Dynamic Sparse Attention, NeurIPS 2024"
    )
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    decode: ClassVar[bool] = True
    query_block: int = 128
    key_block: int = 128
    keep: int = 8
    shared: bool = False

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """One product of pooled queries and keys."""
        layout, blocks = context.layout, (self.query_block, self.key_block)
        status, forced = own_and_first(layout, blocks)
        scores = context.scale * grouped_scores(
            pooled_mean(q, layout.q_position, self.query_block),
            pooled_mean(k, layout.k_position, self.key_block),
        )
        scores = per_group(scores, k.shape[1]) if self.shared else scores
        return Choice(selection=pick_top(scores, status.visible, forced, self.keep, blocks=blocks))


POLICY = Mean
