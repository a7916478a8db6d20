"""Routing tokens to key blocks by the blocks' mean keys."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.attention.heads import grouped_scores
from blockwright.attention.layout import Layout
from blockwright.attention.picking import pick_top, pooled_mean
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status

HELD_ELEMENTS = 2**22
"""Router scores held at once."""


def route(q: Tensor, k: Tensor, layout: Layout, block: int, keep: int) -> Selection:
    """Own block and the best past ones of every token."""
    means = pooled_mean(k, layout.k_position, block)
    step = max(1, HELD_ELEMENTS // (q.shape[0] * q.shape[1] * means.shape[2]))
    parts = []
    for start in range(0, q.shape[2], step):
        part = slice(start, start + step)
        status = tile_status(layout.of_queries(part), 1, block)
        gate = grouped_scores(q[:, :, part], means)
        parts.append(pick_top(gate, status.visible, status.own, keep, blocks=(1, block)))
    longest = max(part.index.shape[-1] for part in parts)
    index = [
        torch.nn.functional.pad(part.index, (0, longest - part.index.shape[-1])) for part in parts
    ]
    count = torch.cat([part.count for part in parts], -1)
    return Selection(query_block=1, key_block=block, index=torch.cat(index, -2), count=count)
