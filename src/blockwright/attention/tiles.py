"""Tiles of a layout: which contain a visible pair, and which nothing but visible pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.heads import align, spread
from blockwright.attention.layout import NOWHERE, PADDING, SEES_ALL, SHARED, Layout


def filled_up(x: Tensor, size: int) -> Tensor:
    """[..., N, D] with zero rows up to a multiple of ``size``; itself where none are missing."""
    missing = -x.shape[-2] % size
    return F.pad(x, (0, 0, 0, missing)) if missing else x


@dataclass(frozen=True, kw_only=True)
class TileStatus:
    """bool [B or 1, h, nq, nk] each."""

    visible: Tensor
    """Whether the tile may contain a visible pair (exact but for segments, where it may be
    optimistic)."""
    full: Tensor
    """Whether every pair of the tile's tokens is visible, no key slot being empty."""
    own: Tensor
    """Whether the tile spans positions of the query tile, or is the last before them."""
    first: Tensor
    """Whether the tile holds the first token."""


def cut(values: Tensor, size: int, *, fill: int = PADDING) -> Tensor:
    """[..., N] -> [..., ceil(N / size), size], the last tile filled up."""
    missing = -values.shape[-1] % size
    return F.pad(values, (0, missing), value=fill).reshape(*values.shape[:-1], -1, size)


def tile_status(layout: Layout, query_block: int, key_block: int) -> TileStatus:
    """Status of every tile, from the least and greatest position in it."""
    q_low, q_high, _ = _bounds(layout.q_position, query_block)
    k_low, k_high, k_whole = _bounds(layout.k_position, key_block)
    q_low, q_high = q_low[..., None], q_high[..., None]
    k_low, k_high, k_whole = k_low[..., None, :], k_high[..., None, :], k_whole[..., None, :]
    visible = (q_high >= 0) & (k_high >= 0)
    full = visible & k_whole
    if layout.causal:
        visible, full = visible & (k_low <= q_high), full & (k_high <= q_low)
    if layout.window is not None:
        gap = torch.maximum(q_low - k_high, k_low - q_high)
        spread = torch.maximum(q_high - k_low, k_high - q_low)
        visible = visible & ((gap < layout.window) | (k_low < layout.sink))
        full = full & ((spread < layout.window) | (k_high < layout.sink))
    own = visible & (k_low <= q_high) & (k_high >= q_low)
    first = visible & (k_low == k_low.amin(-1, keepdim=True))
    visible, full = _within_segments(layout, query_block, key_block, visible, full)
    if layout.allowed is not None:
        some, every = _pool(layout, query_block, key_block)
        visible, full, own, first, some, every = align(visible, full, own, first, some, every)
        visible, full = visible & some, full & every
    return TileStatus(visible=visible, full=full, own=own & visible, first=first & visible)


def _bounds(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Least and greatest position of each tile's tokens, and whether all its slots hold one."""
    tiles = cut(position, size)
    token = tiles >= 0
    low = tiles.masked_fill(~token, NOWHERE).amin(-1)
    return low, tiles.amax(-1), token.all(-1)


def _within_segments(
    layout: Layout, query_block: int, key_block: int, visible: Tensor, full: Tensor
) -> tuple[Tensor, Tensor]:
    if layout.q_segment is None or layout.k_segment is None:
        return visible, full
    q_tiles = cut(layout.q_segment, query_block, fill=0)
    k_tiles = cut(layout.k_segment, key_block, fill=0)
    q_low, q_high = q_tiles.amin(-1)[..., None], q_tiles.amax(-1)[..., None]
    k_low, k_high = k_tiles.amin(-1)[..., None, :], k_tiles.amax(-1)[..., None, :]
    q_all, k_all = q_tiles == SEES_ALL, k_tiles == SHARED
    overlap = (q_low <= k_high) & (k_low <= q_high)
    some = overlap | q_all.any(-1)[..., None] | k_all.any(-1)[..., None, :]
    one = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    every = one | q_all.all(-1)[..., None] | k_all.all(-1)[..., None, :]
    return visible & some, full & every


def _pool(layout: Layout, query_block: int, key_block: int) -> tuple[Tensor, Tensor]:
    """Any and all of ``layout.visible()`` in each tile."""
    seen = layout.visible()
    missing = (0, -seen.shape[-1] % key_block, 0, -seen.shape[-2] % query_block)

    def cells(*, fill: bool) -> Tensor:
        padded = F.pad(seen, missing, value=fill)
        columns = padded.reshape(*padded.shape[:3], -1, key_block)
        return columns.reshape(*seen.shape[:2], -1, query_block, *columns.shape[3:])

    return cells(fill=False).any(-1).any(-2), cells(fill=True).all(-1).all(-2)


class PairMask:
    """Which pairs of given queries and key tiles are visible, without an Nq x Nk mask.

    Queries are numbered over (batch, head, slot) with slots filled up to whole tiles, key tiles
    over (batch, key/value head, tile).
    """

    def __init__(
        self,
        layout: Layout,
        query_block: int,
        key_block: int,
        *,
        batch: int,
        heads: int,
        kv_heads: int,
    ) -> None:
        self.layout, self.heads = layout, heads
        self.q_position = _flat_queries(layout.q_position, query_block, PADDING, batch)
        self.k_position = _flat_keys(layout.k_position, key_block, PADDING, batch, kv_heads)
        self.q_segment = self.k_segment = self.allowed = None
        self.slots = self.q_position.shape[1]
        self.key_tiles = self.k_position.shape[0] // (batch * kv_heads)
        if layout.q_segment is not None and layout.k_segment is not None:
            self.q_segment = _flat_queries(layout.q_segment, query_block, 0, batch)
            self.k_segment = _flat_keys(layout.k_segment, key_block, 0, batch, kv_heads)
        if layout.allowed is not None:
            more = self.slots - layout.allowed.shape[2]
            cells = cut(F.pad(layout.allowed, (0, 0, 0, more)), key_block, fill=False)
            self.allowed = spread(cells, heads).expand(batch, -1, -1, -1, -1)

    def seen(self, query: Tensor, tile: Tensor, used: Tensor | None = None) -> Tensor:
        """bool [n, L, c * key_block] of queries [n, L] and tiles [n, c], those that are used."""
        owner = torch.div(query, self.slots, rounding_mode="floor")
        text, slot = torch.div(owner, self.heads, rounding_mode="floor"), query % self.slots
        k_position = self.k_position[tile]
        if used is not None:
            k_position = k_position.masked_fill(~used[..., None], NOWHERE)
        seen = self.layout.visible_between(
            self.q_position[text, slot],
            k_position.flatten(1)[:, None],
            self.q_segment[text, slot] if self.q_segment is not None else None,
            self.k_segment[tile].flatten(1)[:, None] if self.k_segment is not None else None,
        )
        if self.allowed is None:
            return seen
        place = (text[..., None], (owner % self.heads)[..., None], slot[..., None])
        return seen & self.allowed[(*place, (tile % self.key_tiles)[:, None])].flatten(2)


def _flat_queries(values: Tensor, query_block: int, fill: int, batch: int) -> Tensor:
    """int32 [B, slots]"""
    return cut(values.int(), query_block, fill=fill).flatten(2)[:, 0].expand(batch, -1)


def _flat_keys(values: Tensor, key_block: int, fill: int, batch: int, kv_heads: int) -> Tensor:
    """int32 [B * Hkv * nk, key_block]"""
    tiles = cut(values.int(), key_block, fill=fill)
    return tiles.expand(batch, kv_heads, -1, -1).flatten(0, 2)
