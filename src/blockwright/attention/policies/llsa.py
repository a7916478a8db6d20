"""LLSA: choose coarse blocks first, look only inside them for finer ones; keep all coarse means.

Paper:   "LLSA: Trainable Log-linear Sparse Attention", 2025.
Idea:    pool tokens by b again and again.  The best blocks of the coarsest level are searched at
         the next finer one, and so on, so choosing costs N log N.  What is not visited still
         counts through its means, each for as many tokens as it stands for, so a small K keeps
         the global picture.

Equations -> code
    level L: top-K of mean(q) . mean(k)                      _coarsest
    level l: top-K among the children of the parent's list   _children
    means of unvisited parts, log-weight log(tokens)         _means
Shapes:  b tokens per tile; level l pools b^l; K per list.
Cost:    2 D ((N / b^L)^2 + (L - 1) (N / b) K b) to choose.
Differs from the paper: 1. means of visited parts are hidden (``hide``), where the release counts
         them twice and trains with it.  2. tokens are taken in the order given: the caller
         arranges images so that runs of b are neighbours.
Checked: recall against the flat search, error with and without means,
         tests/claims/test_attention_video.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.far import FarField
from blockwright.attention.heads import grouped_scores, spread
from blockwright.attention.layout import Layout
from blockwright.attention.picking import ordered_top, pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut, tile_status


@dataclass(frozen=True, kw_only=True)
class Llsa(Policy):
    """``keep`` tiles of ``block`` tokens per tile; ``levels`` 1 or more; ``enrich`` adds means."""

    paper: ClassVar[str] = "LLSA: Trainable Log-linear Sparse Attention, 2025"
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    causal: ClassVar[bool] = False
    block: int = 16
    keep: int = 8
    levels: int = 0
    """0: one below 16384 tokens, two from there on."""
    enrich: bool = True
    hide: bool = True

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """From the coarsest level down."""
        layout = context.layout
        levels = self.levels or (1 if k.shape[2] < 2**14 else 2)
        chosen = _coarsest(q, k, layout, self.block**levels, self.keep)
        far = [self._means(k, v, layout, chosen, show=None)] if self.enrich else []
        for level in range(levels - 1, 0, -1):
            parents = _child_lists(chosen, self.block)
            chosen = _children(q, k, layout, parents, self.block**level, self.keep)
            if self.enrich:
                far.append(self._means(k, v, layout, chosen, show=parents))
        return Choice(selection=chosen, far=tuple(far))

    def _means(
        self, k: Tensor, v: Tensor, layout: Layout, chosen: Selection, show: Selection | None
    ) -> FarField:
        """Means of a level, where its own search may have looked but did not choose."""
        size = chosen.key_block
        count = cut(layout.k_position >= 0, size, fill=0).sum(-1)
        return FarField(
            key=pooled_mean(k, layout.k_position, size),
            value=pooled_mean(v, layout.k_position, size),
            log_weight=count.log(),
            hide=chosen if self.hide else None,
            show=show,
        )


def _coarsest(q: Tensor, k: Tensor, layout: Layout, size: int, keep: int) -> Selection:
    """The best blocks of ``size`` tokens for each block of queries, the own one among them."""
    status = tile_status(layout, size, size)
    scores = grouped_scores(
        pooled_mean(q, layout.q_position, size), pooled_mean(k, layout.k_position, size)
    )
    return pick_top(scores, status.visible, status.own, keep, blocks=(size, size))


def _child_lists(chosen: Selection, block: int) -> Selection:
    """The children of all chosen blocks, for the same queries."""
    parts = torch.arange(block, device=chosen.index.device)
    return Selection(
        query_block=chosen.query_block,
        key_block=chosen.key_block // block,
        index=(chosen.index[..., None] * block + parts).flatten(-2),
        count=chosen.count * block,
    )


def _children(
    q: Tensor, k: Tensor, layout: Layout, parents: Selection, size: int, keep: int
) -> Selection:
    """The best of the listed blocks of ``size`` tokens for each block of queries."""
    status = tile_status(layout, size, size)
    q_mean = pooled_mean(q, layout.q_position, size)
    k_mean = spread(pooled_mean(k, layout.k_position, size), q.shape[1])
    tiles, last = q_mean.shape[2], k_mean.shape[2] - 1
    own_parent = torch.arange(tiles, device=q.device) // (parents.query_block // size)
    listed, used = parents.index[:, :, own_parent], parents.used[:, :, own_parent]
    used = used & (listed <= last)
    listed = listed.clamp(max=last)
    keys = torch.take_along_dim(k_mean[:, :, None], listed[..., None], 3)
    scores = torch.matmul(keys, q_mean[..., None])[..., 0]
    own, visible = (
        spread(x, q.shape[1]).expand(len(q), -1, -1, -1).gather(-1, listed)
        for x in (status.own, status.visible)
    )
    scores = scores.masked_fill(own, torch.inf).masked_fill(~(used & visible), -torch.inf)
    best = ordered_top(scores, min(keep, scores.shape[-1]))
    count = (used & visible).sum(-1).clamp(max=best.shape[-1])
    return Selection(query_block=size, key_block=size, index=listed.gather(-1, best), count=count)


POLICY = Llsa
