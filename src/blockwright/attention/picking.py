"""From scores of tiles to lists of tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.attention.heads import align
from blockwright.attention.layout import Layout
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import TileStatus, cut, filled_up, tile_status


def pick_top(
    scores: Tensor, visible: Tensor, forced: Tensor, keep: int, *, blocks: tuple[int, int]
) -> Selection:
    """The ``keep`` best visible tiles of each list, forced ones first and counted.

    ``scores`` fp32 [B, h, nq, nk]; equal scores go to the lower tile.  More forced tiles than
    ``keep`` are all kept.
    """
    scores, visible, forced = align(scores, visible, forced)
    ranked = scores.masked_fill(forced, torch.inf).masked_fill(~visible, -torch.inf)
    must = (forced & visible).sum(-1)
    longest = min(scores.shape[-1], max(1, keep, int(must.max())))
    index = ordered_top(ranked, longest)
    count = torch.minimum(must.clamp(min=keep), visible.sum(-1))
    return Selection(
        query_block=blocks[0], key_block=blocks[1], index=index, count=count.expand(index.shape[:3])
    )


def pick_share(
    mass: Tensor, visible: Tensor, forced: Tensor, share: float | Tensor, *, blocks: tuple[int, int]
) -> Selection:
    """The shortest prefix by descending mass that reaches ``share`` of each row's total.

    ``mass`` fp32 >= 0 [B, h, nq, nk]; forced tiles count first; the tile that crosses is
    included; ``share`` >= 1 keeps everything visible; as [h, 1, 1] it is each head's own.
    """
    mass, visible, forced = align(mass, visible, forced)
    mass = mass.masked_fill(~visible, 0.0)
    ranked = mass.masked_fill(forced, torch.inf).masked_fill(~visible, -torch.inf)
    index = ranked.sort(dim=-1, descending=True, stable=True).indices
    before = mass.gather(-1, index).cumsum(-1)
    before = torch.nn.functional.pad(before[..., :-1], (1, 0))
    wanted = share * mass.sum(-1, keepdim=True)
    count = ((before < wanted) | (share >= 1)).sum(-1)
    count = torch.maximum(count, (forced & visible).sum(-1))
    count = torch.minimum(count, visible.sum(-1))
    longest = max(1, int(count.max()))
    return Selection(
        query_block=blocks[0], key_block=blocks[1], index=index[..., :longest], count=count
    )


def ordered_top(scores: Tensor, keep: int) -> Tensor:
    """int64 [..., keep]: the best entries in descending order, the lower one of equals first."""
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ranks = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    last = scores.shape[-1] - 1
    ranks += last - torch.arange(last + 1, device=scores.device)
    return last - (ranks.topk(keep, dim=-1).values & 0xFFFFFFFF)


def own_and_first(layout: Layout, blocks: tuple[int, int]) -> tuple[TileStatus, Tensor]:
    """The status of all tiles, and those that most policies force: the own one, and, for causal
    attention, whose rows put mass that belongs nowhere there, the first."""
    status = tile_status(layout, *blocks)
    return status, status.own | status.first if layout.causal else status.own


def pooled_mean(x: Tensor, position: Tensor, block: int) -> Tensor:
    """fp32 [B, h, n, D]: mean of each tile's tokens (``position`` [B or 1, 1 or h, N] >= 0)."""
    token = position >= 0
    count = cut(token, block, fill=0).sum(-1).clamp(min=1)
    x = x if bool(token.all()) else x * token[..., None]
    tiles = filled_up(x, block).view(*x.shape[:2], -1, block, x.shape[-1])
    heads = tiles.flatten(0, 1)  # one at a time: the sum in fp32 copies its argument
    total = torch.stack([head.sum(1, dtype=torch.float32) for head in heads])
    return total.view(*x.shape[:2], -1, x.shape[-1]) / count[..., None]
