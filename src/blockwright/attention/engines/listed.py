"""Attention over listed summaries: each query tile meets the few that its list shows."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.attention.far import FarField
from blockwright.attention.heads import spread
from blockwright.attention.layout import PADDING, Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut, filled_up

HELD_ELEMENTS = 2**22
"""Numbers of gathered keys held at once."""


def attend_listed(
    q: Tensor, field: FarField, show: Selection, layout: Layout, scale: float
) -> Partial:
    """[B, H, Nq, D] over the summaries in ``show``'s lists; cost Nq times their length."""
    batch, heads, queries, width = q.shape
    fine = show.query_block if field.hide is None else field.hide.query_block
    tiles = filled_up(q, fine).unflatten(2, (-1, fine))
    count = tiles.shape[2]
    parent = torch.arange(count, device=q.device) * fine // show.query_block
    listed, used = (
        spread(x, heads)[:, :, parent].expand(batch, -1, -1, -1) for x in (show.index, show.used)
    )
    last = field.key.shape[2] - 1
    used = used & (listed <= last)
    listed = listed.clamp(max=last)
    bias = _bias(field, listed, used, count, heads)
    seen = _seen(field, listed, layout, fine, heads)
    step = max(1, HELD_ELEMENTS // max(1, batch * heads * listed.shape[-1] * width))
    parts = [
        _attend_tiles(
            tiles[:, :, rows], field, listed[:, :, rows], bias[:, :, rows], seen[:, :, rows], scale
        )
        for rows in (slice(start, start + step) for start in range(0, count, step))
    ]
    output, lse = (torch.cat(found, 2).flatten(2, 3) for found in zip(*parts, strict=True))
    return Partial(output=output[:, :, :queries].to(q.dtype), lse=lse[:, :, :queries])


def _bias(field: FarField, listed: Tensor, used: Tensor, count: int, heads: int) -> Tensor:
    """fp32 [B, H, nq, m]: log-weights; -inf for what is not listed, or hidden."""
    weight = spread(field.log_weight.float(), heads).expand(len(listed), -1, -1)
    bias = weight.gather(-1, listed.flatten(2)).view(listed.shape).masked_fill(~used, -torch.inf)
    if field.hide is None:
        return bias
    index = field.hide.index.masked_fill(~field.hide.used, -1)
    hidden = spread(index, heads)[:, :, :count].expand(len(listed), -1, -1, -1)
    visited = torch.zeros_like(used)
    for entry in hidden.unbind(-1):
        visited |= listed == entry[..., None]
    return bias.masked_fill(visited, -torch.inf)


def _seen(field: FarField, listed: Tensor, layout: Layout, fine: int, heads: int) -> Tensor:
    """bool [B, H, nq, L, m or 1]: which queries may see which of their summaries."""
    position = cut(layout.q_position, fine, fill=PADDING)[..., None]
    seen = spread(position >= 0, heads).expand(len(listed), -1, -1, -1, -1)
    if field.last_position is None:
        return seen
    last = spread(field.last_position, heads).expand(len(listed), -1, -1)
    last = last.gather(-1, listed.flatten(2)).view(listed.shape)[:, :, :, None]
    return seen & (last < position)


def _attend_tiles(
    q: Tensor, field: FarField, listed: Tensor, bias: Tensor, seen: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """fp32 [B, H, n, L, Dv] and [B, H, n, L] of query tiles [B, H, n, L, D]."""
    keys, values = (_gathered(x, listed) for x in (field.key, field.value))
    scores = (q.float() * scale) @ keys.mT + bias[..., None, :]
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return weights @ values, lse


def _gathered(x: Tensor, listed: Tensor) -> Tensor:
    """fp32 [B, H, n, m, D] of [B, Hkv, r, D]."""
    batch, heads = listed.shape[:2]
    owner = torch.arange(heads, device=x.device) // (heads // x.shape[1])
    text = torch.arange(batch, device=x.device)[:, None, None, None]
    return x[text, owner[:, None, None], listed].float()
