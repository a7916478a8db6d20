"""Query-major schedule: query tiles with lists of like length make one batched product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.attention.engines.products import Product
from blockwright.attention.heads import flat_rows, spread
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial, merge
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import PairMask, cut, filled_up, tile_status

GATHER_BYTES = 2 * 2**20
"""Keys and values gathered for one batch; more would be written to fresh pages every time."""
WASTE = 8
"""Lists of one batch differ by at most a part of ``WASTE`` in length."""


@dataclass(frozen=True)
class Rows:
    """One problem per (batch, list head, query tile): R of them, L = G * query_block queries."""

    tile: Tensor
    """int64 [R, m]: key tiles, numbered over (batch, key/value head, tile), wholly visible ones
    first."""
    count: Tensor
    """int64 [R]"""
    full: Tensor
    """int64 [R]: how many entries are wholly visible."""
    query_block: int
    heads: int
    """Heads that lists are made for: key/value heads, or query heads."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The tensors of one call, cut into tiles, and how to multiply them."""

    rows: Rows
    queries: Tensor
    """[R, L, D]"""
    keys: Tensor
    """[T, key_block * D] over (batch, key/value head, tile); with ``places`` [B * Hkv * Nk, D]"""
    values: Tensor
    """[T, key_block * Dv]; with ``places`` [B * Hkv * Nk, Dv]"""
    places: Tensor | None
    """int64 [T, key_block]: rows of each tile, where they do not lie together."""
    mask: PairMask
    multiply: Product
    scale: float
    widths: tuple[int, int]
    """D and Dv."""

    def attend(self, ids: Tensor, entries: slice) -> Partial:
        """Problems ``ids`` over some entries of their lists: output [n, L, Dv], lse [n, L]."""
        tile = self.rows.tile[ids, entries]
        queries = self.queries[ids]
        bias, empty = _bias(self.rows, ids, entries, self.mask, queries)
        rows = tile.flatten() if self.places is None else self.places[tile].flatten()
        keys, values = (
            source.index_select(0, rows).view(len(ids), -1, width)
            for source, width in zip((self.keys, self.values), self.widths, strict=True)
        )
        output, lse = self.multiply(queries, keys, values, bias, self.scale)
        if empty is not None:
            output = output.masked_fill(empty[..., None], 0.0)
            lse = lse.masked_fill(empty, -torch.inf)
        return Partial(output=output, lse=lse)


def attend_by_query(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection,
    layout: Layout,
    scale: float,
    multiply: Product,
    k_order: Tensor | None = None,
) -> Partial:
    """Attention over the selected tiles; see ``cpu.attend``."""
    rows = make_rows(q, k, selection, layout)
    q_RLD = stack_queries(q, rows.heads, selection.query_block)
    keys, values, places = _sources(k, v, selection.key_block, k_order)
    mask = PairMask(
        layout,
        selection.query_block,
        selection.key_block,
        batch=q.shape[0],
        heads=rows.heads,
        kv_heads=k.shape[1],
    )
    tiles = Tiles(
        rows=rows,
        queries=q_RLD,
        keys=keys,
        values=values,
        places=places,
        mask=mask,
        multiply=multiply,
        scale=scale,
        widths=(q.shape[-1], v.shape[-1]),
    )
    output = q_RLD.new_zeros(*q_RLD.shape[:2], v.shape[-1])
    lse = torch.full(q_RLD.shape[:2], -torch.inf, device=q.device)
    per_tile = selection.key_block * (q.shape[-1] + v.shape[-1]) * q.element_size()
    most = max(1, GATHER_BYTES // per_tile)
    for ids, length in _batches(rows, most):
        part = merge([tiles.attend(ids, entries) for entries in _pieces(length, most)])
        output[ids], lse[ids] = part.output, part.lse
    return _unstack(output, lse, q, rows.heads, layout)


def make_rows(q: Tensor, k: Tensor, selection: Selection, layout: Layout) -> Rows:
    """Lists of visible tiles for every problem, wholly visible tiles first."""
    status = tile_status(layout, selection.query_block, selection.key_block)
    selection = selection.within(status.visible)
    listed = max(selection.index.shape[1], status.full.shape[1])
    heads = q.shape[1] if listed > k.shape[1] else k.shape[1]
    batch, length = q.shape[0], selection.index.shape[-1]
    index, full = spread(selection.index, heads), spread(status.full, heads)
    index = index.expand(batch, -1, -1, -1)
    used = spread(selection.used, heads).expand(batch, -1, -1, -1)
    whole = full.expand(batch, -1, -1, -1).gather(-1, index) & used
    order = (2 - 2 * used.to(torch.int8) + (used & ~whole)).sort(dim=-1, stable=True).indices
    kv_owner = torch.arange(batch * heads, device=q.device) // (heads // k.shape[1])
    kv_owner = kv_owner.view(batch, heads, 1, 1) * status.full.shape[-1]
    return Rows(
        tile=(kv_owner + index.gather(-1, order))
        .masked_fill(~used.gather(-1, order), 0)
        .reshape(-1, length),
        count=used.sum(-1).flatten(),
        full=whole.sum(-1).flatten(),
        query_block=selection.query_block,
        heads=heads,
    )


def stack_queries(q: Tensor, heads: int, query_block: int) -> Tensor:
    """[B, H, Nq, D] -> [B * heads * nq, G * query_block, D]."""
    q = filled_up(q, query_block)
    batch, all_heads, _, width = q.shape
    tiles = q.reshape(batch, heads, all_heads // heads, -1, query_block, width)
    return tiles.transpose(2, 3).reshape(-1, tiles.shape[2] * query_block, q.shape[-1])


def flat_tiles(x: Tensor, key_block: int) -> Tensor:
    """[B, Hkv, Nk, D] -> [B * Hkv * nk, key_block * D]"""
    x = filled_up(x, key_block)
    return x.reshape(-1, key_block * x.shape[-1])


def _unstack(output: Tensor, lse: Tensor, q: Tensor, heads: int, layout: Layout) -> Partial:
    batch, all_heads, queries, _ = q.shape
    group = all_heads // heads

    def undo(x: Tensor) -> Tensor:
        tiles = x.reshape(batch, heads, -1, group, x.shape[1] // group, x.shape[-1])
        return tiles.transpose(2, 3).reshape(batch, all_heads, -1, x.shape[-1])[:, :, :queries]

    output, lse = undo(output), undo(lse[..., None])[..., 0]
    padding = layout.q_position < 0
    if bool(padding.any()):
        output = output.masked_fill(padding[..., None], 0.0)
        lse = lse.masked_fill(padding, -torch.inf)
    return Partial(output=output, lse=lse)


def _batches(rows: Rows, tiles: int) -> Iterator[tuple[Tensor, int]]:
    """Row numbers of each batch and its longest list, lists of like length together."""
    order = torch.argsort(rows.count * (rows.tile.shape[-1] + 1) + rows.full, descending=True)
    counts = rows.count[order].tolist()
    start, end = 0, sum(count > 0 for count in counts)
    while start < end:
        longest = counts[start]
        stop = start + 1
        least = longest - longest // WASTE
        most = min(end, start + max(1, tiles // longest))
        while stop < most and counts[stop] >= least:
            stop += 1
        yield order[start:stop], longest
        start = stop


def _sources(
    k: Tensor, v: Tensor, key_block: int, k_order: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values as ``Tiles`` holds them, and places: keys out of order are not copied."""
    if k_order is None:
        return flat_tiles(k, key_block), flat_tiles(v, key_block), None
    places = cut(flat_rows(k_order, *k.shape[:3]), key_block, fill=0)
    return k.flatten(0, 2), v.flatten(0, 2), places.flatten(0, 2)


def _pieces(length: int, most: int) -> list[slice]:
    """A list's entries in pieces of at most ``most``."""
    return [slice(start, min(start + most, length)) for start in range(0, length, most)]


def _bias(
    rows: Rows, ids: Tensor, entries: slice, mask: PairMask, q_RLD: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """[n, L, M] to add to the scores of some entries, and [n, L] rows that see nothing there;
    None: no need."""
    length, stacked = entries.stop - entries.start, q_RLD.shape[1]
    whole = min(length, max(0, int(rows.full[ids].min()) - entries.start))
    if whole == length:
        return None, None
    block, first = rows.query_block, entries.start + whole
    query = ids[:, None] * block + torch.arange(block, device=ids.device)
    used = torch.arange(first, entries.stop, device=ids.device) < rows.count[ids][:, None]
    seen = mask.seen(query, rows.tile[ids, first : entries.stop], used)
    seen = seen.repeat(1, stacked // block, 1) if stacked > block else seen
    bias = q_RLD.new_zeros(len(ids), stacked, length * (seen.shape[-1] // (length - whole)))
    bias[..., -seen.shape[-1] :].masked_fill_(~seen, -torch.inf)
    return bias, None if whole else ~seen.any(-1)
