"""True attention mass of tiles and rows, some queries at a time: for measuring, not for speed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from blockwright.attention.heads import align, grouped_scores, spread
from blockwright.attention.layout import Layout
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut

HELD_ELEMENTS = 2**24
"""Probabilities held at once."""
MOST_NATS = 30.0
"""Above another call's log-sum-exp: a score that drifted further counts as this."""


def probabilities(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    scale: float,
    slots: Tensor,
    *,
    step: int = 1,
    lse: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the query ``slots``, a multiple of ``step``, and their fp32 probabilities
    [B, H, n, Nk]; with the log-sum-exp of another call [B, H, Nq], exp(score - lse) in their
    place."""
    rows = max(1, HELD_ELEMENTS // (q.shape[0] * q.shape[1] * k.shape[2] * step)) * step
    for part in slots.split(rows):
        scores = grouped_scores(q[:, :, part], k) * scale
        seen = spread(layout.of_queries(part).visible(), q.shape[1])
        scores.masked_fill_(~seen, -torch.inf)
        if lse is None:
            yield part, torch.softmax(scores, -1).nan_to_num_(0.0)
        else:
            shifted = scores.sub_(lse[:, :, part, None]).clamp_(max=MOST_NATS)
            yield part, shifted.exp_().nan_to_num_(0.0)


def tile_mass(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    scale: float,
    blocks: tuple[int, int],
    *,
    lse: Tensor | None = None,
) -> Tensor:
    """fp32 [B, H, nq, nk]: probabilities summed over each tile (slots, not tokens); ``lse``: see
    ``probabilities``."""
    query_block, key_block = blocks
    found = []
    slots = torch.arange(q.shape[2], device=q.device)
    for _, chances in probabilities(q, k, layout, scale, slots, step=query_block, lse=lse):
        columns = cut(chances, key_block, fill=0).sum(-1)
        missing = (0, 0, 0, -columns.shape[2] % query_block)
        rows = torch.nn.functional.pad(columns, missing)
        found.append(rows.view(*rows.shape[:2], -1, query_block, rows.shape[-1]).sum(3))
    return torch.cat(found, 2)


def row_recall(
    q: Tensor, k: Tensor, layout: Layout, scale: float, selection: Selection, slots: Tensor
) -> Tensor:
    """fp32 [B, H, n]: probability of each query slot's row that falls on visited tiles."""
    tiles = spread(selection.to_mask(-(-k.shape[2] // selection.key_block)), q.shape[1])
    found = []
    for part, chances in probabilities(q, k, layout, scale, slots):
        mass = cut(chances, selection.key_block, fill=0).sum(-1)
        mass, listed = align(mass, tiles[:, :, part // selection.query_block])
        found.append((mass * listed).sum(-1))
    return torch.cat(found, 2)
