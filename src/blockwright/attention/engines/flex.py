"""Attention over visited tiles by PyTorch's FlexAttention, compiled for the GPU.

Lists become a BlockMask: tiles that are wholly visible skip the mask, the others read positions.
PyTorch's CPU kernel gives no log-sum-exp, so on CPU only the unfused form is there, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from blockwright.attention.heads import align, spread
from blockwright.attention.layout import SEES_ALL, SHARED, Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status
from blockwright.errors import AttentionError

DENSE_BLOCK = 128
"""Side of the tiles where nothing was selected."""


def unavailable(device: torch.device | None = None) -> str:
    """Why the engine cannot run on a device (default: CPU); empty where it can."""
    if device is None or device.type != "cuda":
        return "PyTorch's CPU kernel gives no log-sum-exp"
    return ""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection | None,
    layout: Layout,
    *,
    scale: float,
    logit_cap: float | None = None,
    unfused: bool = False,
) -> Partial:
    """Attention of [B, H, Nq, D] over [B, Hkv, Nk, D], [B, Hkv, Nk, Dv] in slot order.

    ``unfused`` multiplies everything plainly under the same mask.  Raises ``AttentionError`` where
    the engine is not available.
    """
    if not unfused and (reason := unavailable(q.device)):
        raise AttentionError(f"engine flex: {reason}; use engine 'cpu'")
    run = _plain() if unfused else _compiled()
    output, stats = run(
        q,
        k,
        v,
        score_mod=None if logit_cap is None else _capped(logit_cap),
        block_mask=block_mask(q, k, selection, layout),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    empty = stats.lse == -torch.inf
    return Partial(output=output.masked_fill(empty[..., None], 0.0), lse=stats.lse)


def block_mask(q: Tensor, k: Tensor, selection: Selection | None, layout: Layout) -> BlockMask:
    """Wholly and partly visible tiles of every list, and what decides single pairs.

    The rule for pairs says which tiles are listed too: the unfused form reads nothing else.
    """
    blocks = (DENSE_BLOCK, DENSE_BLOCK)
    if selection is not None:
        blocks = (selection.query_block, selection.key_block)
    status = tile_status(layout, *blocks)
    listed = status.visible
    if selection is not None:
        tiles, listed = align(selection.to_mask(listed.shape[-1]), listed)
        listed = tiles & listed
    batch, heads = q.shape[:2]
    listed, full = (spread(x, heads).expand(batch, -1, -1, -1) for x in align(listed, status.full))
    partial, whole = (_lists(tiles) for tiles in (listed & ~full, listed & full))
    return BlockMask.from_kv_blocks(
        *partial,
        *whole,
        BLOCK_SIZE=blocks,
        mask_mod=_visible(layout, listed, blocks),
        seq_lengths=(q.shape[2], k.shape[2]),
    )


def _lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Count [B, H, nq] and tile numbers [B, H, nq, nk], int32."""
    order = (~tiles).to(torch.uint8).sort(dim=-1, stable=True).indices
    return tiles.sum(-1).to(torch.int32), order.to(torch.int32).contiguous()


def _visible(layout: Layout, listed: Tensor, blocks: tuple[int, int]) -> Callable[..., Tensor]:
    """The layout's rule for one pair of slots, in tiles that are listed [B, H, nq, nk]."""
    batch, heads = listed.shape[:2]
    queries = layout.q_position[:, 0].expand(batch, -1)
    keys = spread(layout.k_position, heads).expand(batch, -1, -1)
    allowed = layout.allowed
    if allowed is not None:
        allowed = spread(allowed, heads).expand(batch, -1, -1, -1)
    segments = None
    if layout.q_segment is not None and layout.k_segment is not None:
        own = layout.q_segment[:, 0].expand(batch, -1)
        segments = own, spread(layout.k_segment, heads).expand(batch, -1, -1)

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = queries[b, i], keys[b, h, j]
        seen = listed[b, h, i // blocks[0], j // blocks[1]] & (query >= 0) & (key >= 0)
        if layout.causal:
            seen = seen & (key <= query)
        if layout.window is not None:
            seen = seen & (((query - key).abs() < layout.window) | (key < layout.sink))
        if segments is not None:
            own, other = segments[0][b, i], segments[1][b, h, j]
            seen = seen & ((own == other) | (other == SHARED) | (own == SEES_ALL))
        return seen if allowed is None else seen & allowed[b, h, i, j]

    return mask


def _capped(logit_cap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return logit_cap * torch.tanh(score / logit_cap)

    return cap


def _plain() -> Callable[..., Any]:
    return flex_attention


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)
