"""Vertical-slash: the columns and diagonals that the prompt's last queries look at.

Paper:   H. Jiang et al., "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via
         Dynamic Sparse Attention", NeurIPS 2024.
Idea:    many heads attend to a few fixed columns and a few fixed distances, and the last queries
         of the prompt reveal both.  Heads whose last queries are unlike the rest, or that follow
         topics, are scored wrongly.

Equations -> code
    P = softmax(scale * Q_last K^T), [64, N]         _last_rows
    c_j = sum_i P[i, j];  g_d = sum_i P[i, i - d]     _columns_and_distances
Shapes:  c one score per column, g one per distance.
Cost:    64 / N of dense.
Differs from the paper: 1. columns and distances are rounded to tiles, where the paper's kernel
         visits single columns.  2. the offline choice of a pattern per head is left to the plan.
         3. the forced first columns and distances come on top of the budget.
Checked: above random on diagonals, below it on topics, tests/claims/test_attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import align, grouped_scores
from blockwright.attention.layout import Layout
from blockwright.attention.picking import own_and_first
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection

LAST_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class VerticalSlash(Policy):
    """Keeps ``share`` of N in columns and distances, a fifth of it columns, unless their numbers
    are given."""

    paper: ClassVar[str] = (
        "Jiang et al., MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via "
        "Dynamic Sparse Attention, NeurIPS 2024"
    )
    knob: ClassVar[Knob | None] = Knob(name="share", least=0.0, most=1.0)
    bidirectional: ClassVar[bool] = False
    share: float = 0.06
    columns: int = 0
    distances: int = 0
    sink: int = 30
    """First columns, always visited."""
    recent: int = 100
    """Shortest distances, always visited."""
    block: int = 64

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """The union of the tiles that kept columns and distances touch."""
        layout, block, keys = context.layout, self.block, k.shape[2]
        status, forced = own_and_first(layout, (block, block))
        offset = _first_query_slot(layout)
        column, distance = _columns_and_distances(q, k, context, offset)
        tokens = int((layout.k_position >= 0).sum(-1).max())
        kept_columns = self.columns or round(0.2 * self.share * tokens)
        kept_distances = self.distances or round(0.8 * self.share * tokens)
        columns = _best(column, kept_columns)
        columns |= (layout.k_position >= 0) & (layout.k_position < self.sink)
        distances = _best(distance, kept_distances)
        distances[..., : self.recent] = True
        tiles = torch.nn.functional.pad(columns, (0, -keys % block)).unflatten(-1, (-1, block))
        vertical = tiles.any(-1)[..., None, :]
        slash = _touched(distances, offset, status.visible.shape[-2], block, tiles.shape[-2])
        mask, visible, forced = align(vertical | slash, status.visible, forced)
        return Choice(selection=Selection.of_mask((mask | forced) & visible, block, block))


def _first_query_slot(layout: Layout) -> int:
    """Key slot of query slot 0, from a token that is both."""
    text = int(layout.q_position.amax((1, 2)).argmax())
    queries = layout.q_position[text, 0]
    slot = int(queries.argmax())
    keys = layout.k_position[min(text, len(layout.k_position) - 1), 0]
    return int((keys == queries[slot]).nonzero()[0]) - slot


def _columns_and_distances(
    q: Tensor, k: Tensor, context: Context, offset: int
) -> tuple[Tensor, Tensor]:
    """fp32 [B, H, Nk] each: mass of every column and of every distance, in the eyes of the last
    queries."""
    layout, keys = context.layout, k.shape[2]
    rows = layout.q_position.topk(min(LAST_ROWS, q.shape[2])).indices
    scores = grouped_scores(torch.take_along_dim(q, rows[..., None], 2), k) * context.scale
    last = torch.take_along_dim(layout.q_position, rows, 2)
    seen = layout.visible_between(last, layout.k_position[:, :, None])
    scores, seen = align(scores, seen)
    P = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)
    column = (offset + rows)[..., None] - torch.arange(keys, device=q.device)
    shifted = torch.take_along_dim(P, column.clamp(0, keys - 1), -1)
    return P.sum(2), (shifted * (column >= 0)).sum(2)


def _best(scores: Tensor, keep: int) -> Tensor:
    """bool like ``scores``: the greatest ``keep`` of the last axis."""
    chosen = scores.topk(min(keep, scores.shape[-1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


def _touched(
    distances: Tensor, offset: int, query_tiles: int, block: int, key_tiles: int
) -> Tensor:
    """bool [B, H, nq, nk]: tiles that a kept distance passes through."""
    keys = distances.shape[-1]
    below = torch.nn.functional.pad(distances.long().cumsum(-1), (1, 0))
    first = offset + block * torch.arange(query_tiles, device=distances.device)[:, None]
    tile = block * torch.arange(key_tiles, device=distances.device)
    least = (first - (tile + block - 1)).clamp(0, keys)
    most = (first + block - tile).clamp(0, keys)
    return below[..., most] > below[..., least]


POLICY = VerticalSlash
