"""What each head of one block visits, in few enough cells to be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.calling import Attended, arranged
from blockwright.attention.heads import spread
from blockwright.attention.mass import row_recall
from blockwright.attention.metrics import call_layout
from blockwright.attention.policy import Context
from blockwright.attention.tiles import tile_status

CELLS = 64
"""Rows and columns of a drawing, at most."""


@dataclass(frozen=True, kw_only=True)
class HeadVisits:
    """One head of the first text of a call."""

    density: float
    """Visited tiles over visible ones."""
    recall: float
    """Mean over rows of the full probability that falls on visited tiles."""
    cells: tuple[tuple[float | None, ...], ...]
    """Share of the visible tiles in each cell that is visited; None where nothing is visible."""


@dataclass
class BlockVisits:
    """A watcher that keeps what one block visits in the first call of several queries."""

    block: int
    heads: tuple[HeadVisits, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, done: Attended, context: Context) -> None:
        if not self.heads and context.layer == self.block and q.shape[2] > 1:
            self.heads = head_visits(q, k, done, context)


def head_visits(q: Tensor, k: Tensor, done: Attended, context: Context) -> tuple[HeadVisits, ...]:
    """Tiles, density and recall of every query head of the first text."""
    heads, selection = q.shape[1], done.choice.selection
    layout = call_layout(done.choice, context)
    blocks = (CELLS, CELLS) if selection is None else (selection.query_block, selection.key_block)
    status = tile_status(layout, *blocks)
    visible = spread(status.visible[:1], heads)[0]
    listed = visible
    if selection is not None:
        listed = spread(selection.to_mask(visible.shape[-1])[:1], heads)[0] & visible
    recall = torch.ones(heads)
    if selection is not None:
        ordered_q, ordered_k, _ = arranged(q, k, k, layout)
        slots = torch.arange(q.shape[2])
        rows = row_recall(ordered_q, ordered_k, layout, context.scale, selection, slots)[0]
        real = (layout.q_position[0, 0] >= 0).expand(heads, -1)
        recall = (rows * real).sum(-1) / real.sum(-1)
    counts = visible.sum((1, 2)).clamp(min=1)
    density = listed.sum((1, 2)) / counts
    return tuple(
        HeadVisits(
            density=float(density[head]),
            recall=float(recall[head]),
            cells=_cells(listed[head], visible[head]),
        )
        for head in range(heads)
    )


def _cells(listed: Tensor, visible: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """Tiles [nq, nk] pooled to at most ``CELLS`` a side."""
    steps = [-(-size // CELLS) for size in visible.shape]
    sums = []
    for tiles in (listed, visible):
        missing = (0, -tiles.shape[1] % steps[1], 0, -tiles.shape[0] % steps[0])
        padded = F.pad(tiles.float(), missing).unflatten(1, (-1, steps[1]))
        sums.append(padded.unflatten(0, (-1, steps[0])).sum((1, 3)))
    seen = sums[1].tolist()
    share = (sums[0] / sums[1].clamp(min=1)).tolist()
    return tuple(
        tuple(part if some else None for part, some in zip(*row, strict=True))
        for row in zip(share, seen, strict=True)
    )
