"""Attention over visited tiles by a Triton kernel: for GPUs, or in Triton's interpreter.

``TRITON_INTERPRET=1``, set before Triton is imported, runs the kernel on CPU, slowly: for tests.
Forward only.  Free masks and capped scores are left to the other engines.
"""

from __future__ import annotations

import importlib.util
import os
from importlib import import_module

import torch
from torch import Tensor

from blockwright.attention.heads import spread
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status
from blockwright.errors import AttentionError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST = 16
"""Smallest side of a product on tensor cores."""
DENSE_BLOCK = 64
"""Side of the tiles where nothing was selected."""


def unavailable(device: torch.device | None = None) -> str:
    """Why the kernel cannot run on a device (default: CPU); empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    on_gpu = device is not None and device.type == "cuda"
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a GPU, or TRITON_INTERPRET=1 set before triton is imported"
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
) -> Partial:
    """Attention of [B, H, Nq, D] over [B, Hkv, Nk, D], [B, Hkv, Nk, Dv] in slot order.

    Raises ``AttentionError`` where the kernel is not available, or cannot do what is asked.
    """
    _check(q, layout, logit_cap)
    batch, heads, queries, width = q.shape
    kv_heads, keys, value_width = k.shape[1], k.shape[2], v.shape[3]
    selection = selection or _everything(layout)
    index, count = (
        spread(x, heads).expand(batch, *[-1] * (x.ndim - 1)).to(torch.int32).contiguous()
        for x in (selection.index, selection.count)
    )
    positions = _per_text(layout.q_position, batch), _per_head(layout.k_position, batch, kv_heads)
    segments = positions
    if layout.q_segment is not None and layout.k_segment is not None:
        segments = _per_text(layout.q_segment, batch), _per_head(layout.k_segment, batch, kv_heads)
    output = q.new_empty(batch, heads, queries, value_width)
    lse = torch.empty(batch, heads, queries, device=q.device)
    tiles = -(-queries // selection.query_block)
    kernel = import_module("blockwright.attention.engines.kernel").attend_tiles
    kernel[(tiles, batch * heads)](
        *(x.contiguous() for x in (q, k, v)),
        index,
        count,
        *positions,
        *segments,
        output,
        lse,
        heads,
        heads // kv_heads,
        queries,
        keys,
        index.shape[2],
        index.shape[3],
        scale,
        layout.window or 0,
        layout.sink,
        CAUSAL=layout.causal,
        WINDOW=layout.window is not None,
        SEGMENTS=layout.q_segment is not None and layout.k_segment is not None,
        D=width,
        DV=value_width,
        BQ=selection.query_block,
        BK=selection.key_block,
        D_WIDE=_wide(width),
        DV_WIDE=_wide(value_width),
        BQ_WIDE=_wide(selection.query_block),
        BK_WIDE=_wide(selection.key_block),
    )
    return Partial(output=output, lse=lse)


def _check(q: Tensor, layout: Layout, logit_cap: float | None) -> None:
    if reason := unavailable(q.device):
        raise AttentionError(f"engine triton: {reason}; use engine 'cpu'")
    if layout.allowed is not None or logit_cap is not None:
        raise AttentionError("engine triton: no free masks and no capped scores; use engine 'cpu'")
    if q.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise AttentionError(f"engine triton: got {q.dtype}, allowed: {known}")


def _everything(layout: Layout) -> Selection:
    """All visible tiles."""
    status = tile_status(layout, DENSE_BLOCK, DENSE_BLOCK)
    return Selection.of_mask(status.visible, DENSE_BLOCK, DENSE_BLOCK)


def _per_text(values: Tensor, batch: int) -> Tensor:
    """int32 [B, Nq]"""
    return values[:, 0].expand(batch, -1).to(torch.int32).contiguous()


def _per_head(values: Tensor, batch: int, kv_heads: int) -> Tensor:
    """int32 [B, Hkv, Nk]"""
    return spread(values, kv_heads).expand(batch, -1, -1).to(torch.int32).contiguous()


def _wide(size: int) -> int:
    """The next power of two."""
    return max(LEAST, 1 << (size - 1).bit_length())
