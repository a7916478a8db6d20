"""BLADE: tiles by real attention of a few sampled tokens, kept up to a share of their energy.

Paper:   "Video-BLADE: Block-Sparse Attention Meets Step Distillation", 2025 (ASA).
Idea:    the same few token places are sampled in every tile, of queries and of keys.  A tile
         matters as much as the sampled row that likes it most.  A single hot key between the
         sampled places is missed.

Equations -> code
    w = exp(max in tile - max in row), score = max over sampled rows      sampled_scores
    shortest prefix with threshold of the energy, least <= count <= most  choose
    means of windows, log-weight log(window)                              FarField
Shapes:  samples s per tile; logits [nq s, nk s].
Cost:    (samples / block)^2 of dense.
Differs from the paper: 1. tokens are taken in the order given (the paper arranges them along a
         Gilbert curve).  2. the tile that crosses the threshold is kept; the release leaves it
         out.  3. the branch of pooled keys (``window``) is off unless asked for: it counts visited
         tokens twice, which only training makes up for.
Checked: recall against oracle and random; sampling all tokens gives exact row maxima,
         tests/claims/test_attention_video.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.far import FarField
from blockwright.attention.heads import align, grouped_scores
from blockwright.attention.picking import pick_share, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.tiles import cut, filled_up, tile_status


@dataclass(frozen=True, kw_only=True)
class Blade(Policy):
    """``threshold`` of the energy within ``least`` and ``most`` of the tiles."""

    paper: ClassVar[str] = "Video-BLADE: Block-Sparse Attention Meets Step Distillation, 2025"
    knob: ClassVar[Knob | None] = Knob(name="threshold", least=0.0, most=1.0)
    causal: ClassVar[bool] = False
    block: int = 128
    samples: int = 16
    threshold: float = 0.95
    least: float = 0.05
    most: float = 0.17
    window: int = 0
    """Tokens per pooled key of the global branch; 0: no such branch."""

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Energies from sampled tokens."""
        layout, block = context.layout, self.block
        status = tile_status(layout, block, block)
        scores = self.sampled_scores(q, k, context)
        scores = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
        everything = pick_share(scores, status.visible, status.own, 1.0, blocks=(block, block))
        wanted = pick_share(
            scores, status.visible, status.own, self.threshold, blocks=(block, block)
        )
        tiles = everything.count
        least, most = ((share * tiles).ceil().long() for share in (self.least, self.most))
        count = wanted.count.clamp(least, torch.maximum(most, least)).clamp(min=1)
        selection = replace(everything, count=torch.minimum(count, tiles))
        far: tuple[FarField, ...] = ()
        if self.window:
            tokens = cut(layout.k_position >= 0, self.window, fill=0).sum(-1)
            means = (pooled_mean(x, layout.k_position, self.window) for x in (k, v))
            far = (FarField(key=next(means), value=next(means), log_weight=tokens.log()),)
        return Choice(selection=selection, far=far)

    def sampled_scores(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        """fp32 [B, H, nq, nk]: the greatest share that a sampled key has in a sampled row."""
        layout, samples = context.layout, min(self.samples, self.block)
        generator = torch.Generator().manual_seed(context.seed)
        places = torch.randperm(self.block, generator=generator)[:samples].sort().values

        def sampled(x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
            tiles = filled_up(x, self.block).view(*x.shape[:2], -1, self.block, x.shape[-1])[
                :, :, :, places
            ]
            return tiles.flatten(2, 3), cut(position, self.block)[..., places].flatten(2)

        queries, q_position = sampled(q, layout.q_position)
        keys, k_position = sampled(k, layout.k_position)
        logits = context.scale * grouped_scores(queries, keys)
        seen = layout.visible_between(q_position, k_position[:, :, None])
        logits, seen = align(logits, seen)
        peaks = cut(logits.masked_fill(~seen, -torch.inf), samples, fill=0).amax(-1)
        share = torch.exp(peaks - peaks.amax(-1, keepdim=True)).nan_to_num(0.0)
        return share.view(*share.shape[:2], -1, samples, share.shape[-1]).amax(3)


POLICY = Blade
