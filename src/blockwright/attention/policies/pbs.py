"""PBS: sort keys by importance inside segments, then choose tiles: fewer cover the same mass.

Paper:   X. Wang et al., "Sparser Block-Sparse Attention via Token Permutation", 2025 (PBS-Attn).
Idea:    attention does not care about the order of key/value pairs.  Moving the important keys of
         a segment next to each other packs scattered hot tokens into few tiles.  Segments before
         the query's own are wholly visible, so only the own one needs a token mask.  Segments
         sort better the larger they are, and cost more: the own one is always visited.

Equations -> code
    P = softmax(scale * Q_last K^T), importance = mean over Q_last        _importance
    order: descending importance inside each whole segment                _segment_order
    softmax(mean(q) . mean(permuted k)) over earlier segments, prefix     choose
Shapes:  one order per key/value head.
Cost:    block / N to probe, pooled scores, a copy of K and V; density at least segment / N.
Differs from the paper: 1. one permutation per key/value head, its group's importance summed,
         where the released code repeats keys and values per query head.  2. queries stay in order,
         as in the released code.
Checked: recall and error on scattered keys against unpermuted tiles,
         tests/claims/test_attention_order.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import align, grouped_scores, take_rows
from blockwright.attention.layout import Layout
from blockwright.attention.picking import pick_share, pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut, tile_status
from blockwright.errors import AttentionError

HELD_ELEMENTS = 2**19
"""Probabilities of probed rows held at once: a cache's worth."""


@dataclass(frozen=True, kw_only=True)
class Pbs(Policy):
    """``threshold`` of the pooled mass outside the own segment, or ``keep`` tiles there if > 0."""

    paper: ClassVar[str] = "Wang et al., Sparser Block-Sparse Attention via Token Permutation, 2025"
    knob: ClassVar[Knob | None] = Knob(name="threshold", least=0.0, most=1.0)
    bidirectional: ClassVar[bool] = False
    block: int = 128
    segment: int = 256
    threshold: float = 0.9
    keep: int = 0

    def __post_init__(self) -> None:
        if self.segment % self.block:
            raise AttentionError(f"pbs: block {self.block} does not divide segment {self.segment}")

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Permute, score pooled tiles of earlier segments, add the own segment."""
        block = self.block
        order = _segment_order(_importance(q, k, context, block), context.layout, self.segment)
        layout = context.layout.reordered(order)
        status = tile_status(layout, block, block)
        own = tile_status(context.layout, block, self.segment).own
        own = own.repeat_interleave(self.segment // block, -1)[..., : status.visible.shape[-1]]
        k_mean = _ordered_means(k, order, layout, block)
        q_mean = pooled_mean(q, layout.q_position, block)
        scores = context.scale * grouped_scores(q_mean, k_mean)
        scores, earlier = align(scores, status.visible & ~own)
        mass = torch.softmax(scores.masked_fill(~earlier, -torch.inf), -1).nan_to_num(0.0)
        none = torch.zeros_like(earlier)
        if self.keep:
            picked = pick_top(scores, earlier, none, self.keep, blocks=(block, block))
        else:
            picked = pick_share(mass, earlier, none, self.threshold, blocks=(block, block))
        chosen, forced, visible = align(
            picked.to_mask(mass.shape[-1]), own | status.first, status.visible
        )
        return Choice(
            selection=Selection.of_mask((chosen | forced) & visible, block, block), layout=layout
        )


def _importance(q: Tensor, k: Tensor, context: Context, rows: int) -> Tensor:
    """fp32 [B, Hkv, Nk]: mass of each key in the eyes of the last ``rows`` real queries."""
    layout = context.layout
    last = layout.q_position.topk(min(rows, q.shape[2])).indices
    probes = take_rows(q, last.expand(len(q), -1, -1))
    hidden = ~layout.visible_between(
        torch.take_along_dim(layout.q_position, last, 2), layout.k_position[:, :, None]
    )
    probes = probes.unflatten(1, (k.shape[1], -1))
    mass = [
        torch.stack(
            [
                _mass(
                    probes[text, head],
                    k[text, head],
                    hidden[min(text, len(hidden) - 1), min(head, hidden.shape[1] - 1)],
                    context.scale,
                )
                for head in range(k.shape[1])
            ]
        )
        for text in range(len(k))
    ]
    return torch.stack(mass)


def _mass(probes_GRD: Tensor, k_KD: Tensor, hidden_RK: Tensor, scale: float) -> Tensor:
    """fp32 [K]: summed probabilities of a group's probed rows; a row that sees no key has none."""
    columns = hidden_RK.any(0).nonzero()
    masked = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0)
    rows_see = ~hidden_RK.all(1)
    step = max(1, HELD_ELEMENTS // (len(probes_GRD) * len(k_KD)))
    mass = torch.zeros(len(k_KD), device=k_KD.device)
    for start in range(0, len(rows_see), step):
        part = slice(start, start + step)
        scores = (probes_GRD[:, part][:, rows_see[part]] @ k_KD.mT).float().mul_(scale)
        scores[..., masked].masked_fill_(hidden_RK[part, masked][rows_see[part]], -torch.inf)
        mass += torch.softmax(scores, -1).sum((0, 1))
    return mass


def _ordered_means(k: Tensor, order: Tensor, layout: Layout, block: int) -> Tensor:
    """fp32 [B, Hkv, nk, D]: means of tiles of reordered keys, a head's at a time."""
    heads = [
        pooled_mean(
            take_rows(k[:, head : head + 1], order[:, head : head + 1]),
            layout.k_position[:, head : head + 1],
            block,
        )
        for head in range(k.shape[1])
    ]
    return torch.cat(heads, 1)


def _segment_order(importance: Tensor, layout: Layout, segment: int) -> Tensor:
    """int64 [B, Hkv, Nk]: keys of whole segments by importance, empty slots last; the rest stay."""
    empty = (layout.k_position < 0).expand_as(importance)
    whole = importance.shape[-1] // segment * segment
    ranked = importance.masked_fill(empty, -torch.inf)
    inside = cut(ranked[..., :whole], segment).argsort(dim=-1, descending=True, stable=True)
    base = segment * torch.arange(whole // segment, device=inside.device)[:, None]
    tail = torch.arange(whole, importance.shape[-1], device=inside.device)
    return torch.cat([(inside + base).flatten(2), tail.expand(*importance.shape[:2], -1)], -1)


POLICY = Pbs
