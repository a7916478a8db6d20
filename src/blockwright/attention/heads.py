"""Query heads that share a key/value head (grouped-query attention): G of them per group."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(values: Tensor, heads: int) -> Tensor:
    """[B, h, ...] -> [B, heads, ...]: every head of a group gets the group's values."""
    own = values.shape[1]
    if own == heads:
        return values
    if own == 1:
        return values.expand(-1, heads, *values.shape[2:])
    return values.repeat_interleave(heads // own, dim=1)


def take_rows(x: Tensor, order: Tensor) -> Tensor:
    """[B, H, N, D] with rows in another order, int64 [B or 1, h, n] -> [B, H, n, D]."""
    rows = flat_rows(order, *x.shape[:3])
    return x.flatten(0, 2).index_select(0, rows.flatten()).view(*rows.shape, x.shape[-1])


def flat_rows(order: Tensor, batch: int, heads: int, rows: int) -> Tensor:
    """int64 [B, H, n]: ``order`` [B or 1, h, n] counted over (batch, head, row)."""
    first = rows * torch.arange(batch * heads, device=order.device).view(batch, heads, 1)
    return spread(order, heads) + first


def align(*values: Tensor) -> tuple[Tensor, ...]:
    """All with as many heads as the one that has most."""
    heads = max(x.shape[1] for x in values)
    return tuple(spread(x, heads) for x in values)


def grouped_scores(query: Tensor, key: Tensor) -> Tensor:
    """fp32 products [B, H, n, m] of [B, H, n, D] and [B, Hkv, m, D], keys not repeated."""
    batch, heads, rows, width = query.shape
    stacked = query.float().reshape(batch, key.shape[1], -1, width)
    return torch.matmul(stacked, key.float().mT).view(batch, heads, rows, -1)


def per_group(scores: Tensor, kv_heads: int) -> Tensor:
    """Greatest score of each group's heads: [B, H, ...] -> [B, Hkv, ...]."""
    return scores.reshape(scores.shape[0], kv_heads, -1, *scores.shape[2:]).amax(2)
