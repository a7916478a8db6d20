"""The Triton kernel: one program per query tile and head walks its list of key tiles in order.

Source: the running maximum and sum of FlashAttention-2 (Dao, ICLR 2024), over listed tiles.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SHARED, SEES_ALL = tl.constexpr(-2), tl.constexpr(-3)


@triton.jit  # type: ignore[untyped-decorator]
def visible(
    query: Any, key: Any, window: Any, sink: Any, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
) -> Any:
    """Pairs of positions [Bq], [Bk] that the rule lets see each other."""
    seen = (key >= 0)[None, :] & (query >= 0)[:, None]
    if CAUSAL:
        seen &= key[None, :] <= query[:, None]
    if WINDOW:
        near = tl.abs(query[:, None] - key[None, :]) < window
        seen &= near | (key < sink)[None, :]
    return seen


@triton.jit  # type: ignore[untyped-decorator]
def attend_tiles(
    q: Any,
    k: Any,
    v: Any,
    index: Any,
    count: Any,
    q_position: Any,
    k_position: Any,
    q_segment: Any,
    k_segment: Any,
    output: Any,
    lse: Any,
    heads: Any,
    group: Any,
    queries: Any,
    keys: Any,
    tiles: Any,
    longest: Any,
    scale: Any,
    window: Any,
    sink: Any,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    D_WIDE: tl.constexpr,
    DV_WIDE: tl.constexpr,
    BQ_WIDE: tl.constexpr,
    BK_WIDE: tl.constexpr,
) -> None:
    """All tensors contiguous: q [B, H, Nq, D], k and v [B, Hkv, Nk, ...], index [B, H, nq, m],
    count [B, H, nq], positions and segments [B, N] or [B, Hkv, N]; the ``_WIDE`` sizes are powers
    of two."""
    tile, owner = tl.program_id(0), tl.program_id(1)
    text, head = owner // heads, owner % heads
    kv_owner = text * (heads // group) + head // group
    inside = tl.arange(0, BQ_WIDE)
    row = tile * BQ + inside
    real_row = (inside < BQ) & (row < queries)
    channel, value = tl.arange(0, D_WIDE), tl.arange(0, DV_WIDE)
    place = tl.arange(0, BK_WIDE)
    query = tl.load(
        q + (owner * queries + row[:, None]) * D + channel,
        mask=real_row[:, None] & (channel < D),
        other=0.0,
    )
    at = tl.load(q_position + text * queries + row, mask=real_row, other=-1)
    peak = tl.full([BQ_WIDE], float("-inf"), tl.float32)
    total = tl.zeros([BQ_WIDE], tl.float32)
    sums = tl.zeros([BQ_WIDE, DV_WIDE], tl.float32)
    listed = index + (owner * tiles + tile) * longest
    for entry in range(tl.load(count + owner * tiles + tile)):
        column = tl.load(listed + entry) * BK + place
        real = (place < BK) & (column < keys)
        there = tl.load(k_position + kv_owner * keys + column, mask=real, other=-1)
        seen = visible(at, there, window, sink, CAUSAL, WINDOW)
        if SEGMENTS:
            own = tl.load(q_segment + text * queries + row, mask=real_row, other=0)[:, None]
            other = tl.load(k_segment + kv_owner * keys + column, mask=real, other=0)[None, :]
            seen &= (own == other) | (other == SHARED) | (own == SEES_ALL)
        key = tl.load(
            k + (kv_owner * keys + column[None, :]) * D + channel[:, None],
            mask=real[None, :] & (channel < D)[:, None],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee") * (scale * LOG2E)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - safe[:, None])
        fade = tl.exp2(peak - safe)
        values = tl.load(
            v + (kv_owner * keys + column[:, None]) * DV + value,
            mask=real[:, None] & (value < DV),
            other=0.0,
        )
        part = tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        total = total * fade + tl.sum(weight, 1)
        sums = sums * fade[:, None] + part
        peak = higher
    empty = total == 0.0
    answer = sums / tl.where(empty, 1.0, total)[:, None]
    tl.store(
        output + (owner * queries + row[:, None]) * DV + value,
        answer.to(output.dtype.element_ty),
        mask=real_row[:, None] & (value < DV),
    )
    nats = tl.where(empty, float("-inf"), (peak + tl.log2(tl.where(empty, 1.0, total))) / LOG2E)
    tl.store(lse + owner * queries + row, nats, mask=real_row)
