"""Attention over visited tiles in plain PyTorch: gather tiles, multiply many problems at once.

Two schedules.  *By query*: query tiles with lists of like length make one batch; their key tiles
are gathered side by side, the partly visible ones last, so that only those columns need a mask.
*By key*, for lists per token: (token, tile) pairs are sorted by tile, each tile meets all tokens
that chose it, and each token's partial results are merged by log-sum-exp.

Key/value heads are never repeated: lists shared by a group of G query heads stack the group's
queries into one problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockwright.attention.engines.by_key import attend_by_key
from blockwright.attention.engines.by_query import attend_by_query
from blockwright.attention.engines.listed import attend_listed
from blockwright.attention.engines.products import Product, fusable, plain_product, product
from blockwright.attention.far import FarField
from blockwright.attention.heads import spread, take_rows
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial, merge
from blockwright.attention.selection import Selection

DENSE_PAIRS = 2**24
"""Pairs of a mask that dense attention holds at a time."""
ROUTED_ROWS = 64
"""Queries from which lists per token go by key."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection | None,
    layout: Layout,
    *,
    scale: float,
    far: Sequence[FarField] = (),
    logit_cap: float | None = None,
    multiply: Product = product,
    k_order: Tensor | None = None,
) -> Partial:
    """Attention of [B, H, Nq, D] over [B, Hkv, Nk, D], [B, Hkv, Nk, Dv] in slot order.

    ``selection`` None visits everything visible; ``multiply`` computes the tiles; ``k_order`` int64
    [B or 1, 1 or Hkv, n]: the rows of k and v that are the slots, where they are not in order.
    """
    if logit_cap is not None:
        multiply = _capped(logit_cap)
    routed = selection is None or (selection.query_block == 1 and q.shape[2] >= ROUTED_ROWS)
    if k_order is not None and routed:
        k, v, k_order = take_rows(k, k_order), take_rows(v, k_order), None
    if selection is None:
        part = attend_dense(q, k, v, layout, scale, multiply)
    elif routed:
        part = attend_by_key(q, k, v, selection, layout, scale, multiply)
    else:
        part = attend_by_query(q, k, v, selection, layout, scale, multiply, k_order)
    return merge([part, *(attend_far(q, field, layout, scale, multiply) for field in far)])


def attend_dense(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, multiply: Product = product
) -> Partial:
    """Everything visible; fused and without a mask where causality is the only rule."""
    if (
        multiply is product
        and fusable(q, k, v)
        and layout.is_plain
        and (q.shape[2] in (1, k.shape[2]) or not layout.causal)
    ):
        return _fused_dense(q, k, v, layout.causal and q.shape[2] > 1, scale)
    heads, queries = q.shape[1], q.shape[2]
    step = max(1, DENSE_PAIRS // (k.shape[2] * heads * q.shape[0]))
    parts = [
        _masked_dense(q, k, v, layout, slice(start, start + step), scale, multiply)
        for start in range(0, queries, step)
    ]
    return Partial(
        output=torch.cat([part.output for part in parts], 2),
        lse=torch.cat([part.lse for part in parts], 2),
    )


def attend_far(
    q: Tensor, field: FarField, layout: Layout, scale: float, multiply: Product = product
) -> Partial:
    """Attention over the summaries alone."""
    if field.show is not None:
        return attend_listed(q, field, field.show, layout, scale)
    bias = field.bias(layout).expand(-1, -1, q.shape[2], -1)
    return _with_bias(q, field.key.to(q.dtype), field.value.to(q.dtype), bias, scale, multiply)


def _fused_dense(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Partial:
    groups = q.shape[1] // k.shape[1]
    results = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries.unflatten(0, (-1, groups)),
            keys[:, None].expand(-1, groups, -1, -1),
            values[:, None].expand(-1, groups, -1, -1),
            is_causal=causal,
            scale=scale,
        )
        for queries, keys, values in zip(q, k, v, strict=True)
    ]
    return Partial(
        output=torch.stack([output.flatten(0, 1) for output, _ in results]),
        lse=torch.stack([lse.flatten(0, 1) for _, lse in results]),
    )


def _masked_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    rows: slice,
    scale: float,
    multiply: Product,
) -> Partial:
    seen = layout.of_queries(rows).visible()
    bias = torch.zeros(seen.shape, device=q.device).masked_fill_(~seen, -torch.inf)
    return _with_bias(q[:, :, rows], k, v, bias, scale, multiply)


def _with_bias(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, multiply: Product
) -> Partial:
    """All queries of a group against its keys: one problem per key/value head.

    ``bias`` is [B or 1, h, Nq, M]; rows that are -inf throughout come out empty.
    """
    batch, heads, queries, _ = q.shape
    kv_heads = k.shape[1]
    wide = spread(bias, heads).expand(batch, -1, -1, -1)
    empty = (wide == -torch.inf).all(-1)
    stacked = wide.reshape(batch * kv_heads, -1, wide.shape[-1]).to(q.dtype)
    output, lse = multiply(
        q.reshape(batch * kv_heads, -1, q.shape[-1]),
        k.flatten(0, 1),
        v.flatten(0, 1),
        stacked,
        scale,
    )
    shape = (batch, heads, queries)
    return Partial(
        output=output.reshape(*shape, -1).masked_fill(empty[..., None], 0.0),
        lse=lse.reshape(shape).masked_fill(empty, -torch.inf),
    )


def _capped(logit_cap: float) -> Product:
    """Scores bounded by ``cap * tanh(score / cap)``."""

    def multiply(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        return plain_product(q, k, v, bias, scale, logit_cap)

    return multiply
