"""Random attention problems of odd shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from blockwright.attention.far import FarField
from blockwright.attention.layout import SEES_ALL, SHARED, Layout
from blockwright.attention.selection import Selection


class Problem(NamedTuple):
    """Tensors, what is visible, and which tiles are visited."""

    q: Tensor
    k: Tensor
    v: Tensor
    selection: Selection
    layout: Layout


class Shape(NamedTuple):
    """B, Hkv, G, Nq, Nk, D, Dv, query and key block."""

    batch: int
    kv_heads: int
    group: int
    queries: int
    keys: int
    width: int
    value_width: int
    query_block: int
    key_block: int


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    width = draw(st.sampled_from([8, 20]))
    return Shape(
        batch=draw(st.integers(1, 2)),
        kv_heads=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 3])),
        queries=draw(st.sampled_from([1, 7, 64, 70])),
        keys=draw(st.sampled_from([1, 33, 64, 75])),
        width=width,
        value_width=draw(st.sampled_from([width, 12])),
        query_block=draw(st.sampled_from([1, 5, 16])),
        key_block=draw(st.sampled_from([1, 8, 16])),
    )


FLAGS = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.sampled_from([None, 9]),
        "padded": st.booleans(),
        "segments": st.booleans(),
        "masked": st.booleans(),
        "permuted": st.booleans(),
    }
)

CAUSAL: dict[str, object] = {
    "causal": True,
    "window": None,
    "padded": False,
    "segments": False,
    "masked": False,
    "permuted": False,
}
"""Nothing but causality."""


def random_problem(shape: Shape, flags: dict[str, object], seed: int) -> Problem:
    """Everything random from a seed; some lists are empty, some rows see nothing."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    heads = shape.kv_heads * shape.group
    layout = random_layout(shape, flags, generator)
    listed = [1, shape.kv_heads, heads][seed % 3]
    tiles = (-(-shape.queries // shape.query_block), -(-shape.keys // shape.key_block))
    mask = torch.rand(shape.batch, listed, *tiles, generator=generator) < 0.5
    return Problem(
        q=randn(shape.batch, heads, shape.queries, shape.width),
        k=randn(shape.batch, shape.kv_heads, shape.keys, shape.width),
        v=randn(shape.batch, shape.kv_heads, shape.keys, shape.value_width),
        selection=Selection.of_mask(mask, shape.query_block, shape.key_block),
        layout=layout,
    )


def random_layout(shape: Shape, flags: dict[str, object], generator: torch.Generator) -> Layout:
    """Positions, padding, documents, a free mask and permuted keys, as the flags ask."""
    window = flags["window"]
    layout = Layout.plain(
        shape.queries,
        shape.keys,
        causal=bool(flags["causal"]),
        window=window if isinstance(window, int) else None,
    )
    layout = replace(layout, sink=2, q_position=layout.q_position.clamp(min=0))
    if flags["padded"]:
        empty = torch.rand(shape.batch, 1, shape.keys, generator=generator) < 0.3
        blank = torch.rand(shape.batch, 1, shape.queries, generator=generator) < 0.2
        layout = replace(
            layout,
            k_position=layout.k_position.masked_fill(empty, -1),
            q_position=layout.q_position.masked_fill(blank, -1),
        )
    if flags["segments"]:
        layout = replace(
            layout,
            q_segment=_documents(shape.queries, SEES_ALL, generator),
            k_segment=_documents(shape.keys, SHARED, generator),
        )
    if flags["masked"]:
        size = (1, shape.kv_heads * shape.group, shape.queries, shape.keys)
        layout = replace(layout, allowed=torch.rand(size, generator=generator) < 0.7)
    if flags["permuted"]:
        heads = (1, shape.kv_heads)[shape.keys % 2]
        order = torch.rand(1, heads, shape.keys, generator=generator).argsort(-1)
        layout = layout.reordered(order)
    return layout


def _documents(tokens: int, special: int, generator: torch.Generator) -> Tensor:
    ids = torch.randint(0, 3, (1, 1, -(-tokens // 16)), generator=generator)
    ids = torch.where(ids == 0, special, ids)
    return ids.repeat_interleave(16, -1)[..., :tokens]


def random_far(problem: Problem, seed: int) -> FarField:
    """One summary per key tile, hidden where the tile is visited."""
    generator = torch.Generator().manual_seed(seed)
    selection = problem.selection
    tiles = -(-problem.k.shape[2] // selection.key_block)
    batch, kv_heads, _, width = problem.k.shape

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return FarField(
        key=randn(batch, kv_heads, tiles, width),
        value=randn(batch, kv_heads, tiles, problem.v.shape[-1]),
        log_weight=randn(1, 1, tiles),
        last_position=torch.arange(tiles)[None, None] * selection.key_block,
        hide=selection,
    )
