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
