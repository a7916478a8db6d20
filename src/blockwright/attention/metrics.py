"""What a choice of tiles costs and keeps: density, mass recall, output error."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.attention.calling import arranged
from blockwright.attention.heads import align
from blockwright.attention.layout import Layout
from blockwright.attention.mass import row_recall
from blockwright.attention.policy import Choice, Context
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status


def density(choice: Choice, context: Context) -> float:
    """Visited tiles over tiles that hold a visible pair of the call (1.0: dense)."""
    selection = choice.selection
    if selection is None:
        return 1.0
    visible = tile_status(call_layout(choice, context), selection.query_block, selection.key_block)
    tiles, status = align(selection.to_mask(visible.visible.shape[-1]), visible.visible)
    batch = max(len(tiles), len(status))
    tiles, status = (x.expand(batch, *x.shape[1:]) for x in (tiles, status))
    return float((tiles & status).sum() / status.sum())


def mass_recall(
    q: Tensor, k: Tensor, choice: Choice, context: Context, *, rows: int | None = None
) -> float:
    """Mean over query rows of the full probability that falls on visited pairs.

    ``rows``: so many rows, drawn evenly from ``context.seed``, in place of all.
    """
    if choice.selection is None:
        return 1.0
    layout = call_layout(choice, context)
    q, k, _ = arranged(q, k, k, layout)
    slots = torch.arange(q.shape[2])
    if rows is not None and rows < len(slots):
        generator = torch.Generator().manual_seed(context.seed)
        slots = torch.randperm(len(slots), generator=generator)[:rows].sort().values
    recall = row_recall(q, k, layout, context.scale, choice.selection, slots)
    real = (layout.q_position[..., slots] >= 0).expand(recall.shape)
    return float(recall[real].mean())


def output_error(output: Tensor, dense: Tensor) -> float:
    """Frobenius norm of the difference over that of the dense output."""
    return float(torch.linalg.norm((output - dense).float()) / torch.linalg.norm(dense.float()))


def visited_tiles(selection: Selection) -> int:
    """Entries of all lists."""
    return int(selection.count.sum())


def call_layout(choice: Choice, context: Context) -> Layout:
    """The call's own visibility in the choice's order."""
    if choice.layout is None or choice.layout.k_order is None:
        return context.layout
    return choice.layout
