"""Key-major schedule for lists per token: each key tile meets all the tokens that chose it.

Source: the gather, dense product, scatter of FlashMoBA (2025), with a stable sort for the lists
and one merge by log-sum-exp per token in place of atomic updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.attention.engines.by_query import WASTE, flat_tiles
from blockwright.attention.engines.products import Product
from blockwright.attention.heads import spread
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import PairMask, tile_status

HELD_ELEMENTS = 2**24
"""Elements of partial results held before they are merged."""
ROWS_AT_ONCE = 2**15
"""Query rows of one batched product."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Key tiles [T, key_block, D] over (batch, key/value head, tile), and how to multiply them."""

    keys: Tensor
    values: Tensor
    mask: PairMask
    multiply: Product
    scale: float


def attend_by_key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection,
    layout: Layout,
    scale: float,
    multiply: Product,
) -> Partial:
    """Attention over lists per token; see ``cpu.attend``."""
    batch, heads, queries, _ = q.shape
    block = selection.key_block
    mask = PairMask(layout, 1, block, batch=batch, heads=heads, kv_heads=k.shape[1])
    tiles = Keys(
        keys=flat_tiles(k, block).unflatten(-1, (block, -1)),
        values=flat_tiles(v, block).unflatten(-1, (block, -1)),
        mask=mask,
        multiply=multiply,
        scale=scale,
    )
    tile, whole, partial = _pairs(q, k, selection, layout)
    rows, length = q.flatten(0, 2), tile.shape[-1]
    step = max(1, HELD_ELEMENTS // (length * v.shape[-1]))
    parts = [
        _attend_rows(rows, first, tiles, *(x[first : first + step] for x in (tile, whole, partial)))
        for first in range(0, len(rows), step)
    ]
    return Partial(
        output=torch.cat([part.output for part in parts]).view(batch, heads, queries, -1),
        lse=torch.cat([part.lse for part in parts]).view(batch, heads, queries),
    )


def _pairs(
    q: Tensor, k: Tensor, selection: Selection, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every query row: its tiles, and which are wholly or partly visible; [rows, m] each."""
    batch, heads = q.shape[:2]
    status = tile_status(layout, 1, selection.key_block)
    index, used, visible, full = (
        spread(x, heads).expand(batch, -1, -1, -1)
        for x in (selection.index, selection.used, status.visible, status.full)
    )
    whole = used & full.gather(-1, index)
    partial = used & visible.gather(-1, index) & ~whole
    owner = torch.arange(batch * heads, device=q.device) // (heads // k.shape[1])
    tile = owner.view(batch, heads, 1, 1) * full.shape[-1] + index
    return tile.flatten(0, 2), whole.flatten(0, 2), partial.flatten(0, 2)


def _attend_rows(
    rows: Tensor, first: int, tiles: Keys, tile: Tensor, whole: Tensor, partial: Tensor
) -> Partial:
    """Query rows from number ``first`` on: output [n, Dv], lse [n]."""
    length = tile.shape[-1]
    output = rows.new_zeros(*tile.shape, tiles.values.shape[-1])
    lse = torch.full(tile.shape, -torch.inf, device=rows.device)
    for chosen in (whole, partial):
        row, slot = chosen.nonzero(as_tuple=True)
        number = tile[row, slot]
        for pair, real in _batches(number):
            query, key = first + row[pair], number[pair[:, 0]]
            bias = None
            if chosen is partial:
                seen = tiles.mask.seen(query, key[:, None])
                bias = rows.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            part, part_lse = tiles.multiply(
                rows[query], tiles.keys[key], tiles.values[key], bias, tiles.scale
            )
            if bias is not None:
                part_lse = part_lse.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
            place = (row * length + slot)[pair[real]]
            output.view(-1, output.shape[-1])[place] = part[real]
            lse.view(-1)[place] = part_lse[real]
    total = torch.logsumexp(lse, -1)
    weight = torch.exp(lse - total.masked_fill(total == -torch.inf, 0.0)[:, None])
    merged = torch.bmm(weight[:, None].to(output.dtype), output)[:, 0]
    return Partial(output=merged, lse=total)


def _batches(number: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs [T, n] that share a tile row by row, and which of them are real: tiles of like load
    together."""
    if not len(number):
        return
    order = torch.argsort(number, stable=True)
    _, load = torch.unique_consecutive(number[order], return_counts=True)
    begin = load.cumsum(0) - load
    by_load = torch.argsort(load, descending=True, stable=True)
    loads = load[by_load].tolist()
    start = 0
    while start < len(loads):
        longest = loads[start]
        most = min(len(loads), start + max(1, ROWS_AT_ONCE // longest))
        stop = start + 1
        while stop < most and loads[stop] >= longest - longest // WASTE:
            stop += 1
        chosen = by_load[start:stop]
        within = torch.arange(longest, device=number.device)
        real = within < load[chosen][:, None]
        yield order[begin[chosen][:, None] + within.where(real, 0)], real
        start = stop
