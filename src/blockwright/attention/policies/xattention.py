"""XAttention: tiles by the softmax of their antidiagonal sums.

Paper:   R. Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring", ICML 2025.
Idea:    in every S x S square of the score matrix one antidiagonal touches each row and each
         column once, so its sum sees columns and broad diagonals alike.  Concatenating S tokens
         makes all these sums one matrix product; their softmax gives tile masses, and the
         smallest set that reaches a share of the mass is visited.  Diagonals one token wide are
         diluted by S, and averaging flattens the softmax: isolated columns need a lower threshold.

Equations -> code
    W = softmax(scale / (S norm) * Q~ K~^T)        antidiagonal_mass; Q~ reversed within S
    T[a, b] = sum of W over the tile               antidiagonal_mass
    prefix of T that reaches threshold             pick_share
    tau_h = tau 0.9^m_h                            _shares; m_h: head_thresholds.fit_heads
Shapes:  S stride; Q~, K~ [N / S, S D]; T [nq, nk].
Cost:    1 / (2 S) of dense.
Differs from the paper: 1. tiles of a stride that have no visible pair are masked by positions,
         so padding and unequal lengths work.  2. the dynamic program over heads shares
         out visited tiles, the paper's steps of the thresholds.  3. sums of bfloat16 inputs are
         rounded to bfloat16 before the softmax: 0.2% of a mean logit.
Checked: strided sums equal explicit antidiagonal means; recall against pooled means and random;
         thresholds per head against one, tests/claims/test_xattention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.heads import per_group
from blockwright.attention.layout import NOWHERE, Layout
from blockwright.attention.picking import own_and_first, pick_share, pick_top
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.tiles import filled_up
from blockwright.errors import AttentionError

TILES_AT_ONCE = 16
"""Query tiles scored at once: later keys need no scores."""
FALL = 0.9
"""A head's threshold times this is one step lower."""


@dataclass(frozen=True, kw_only=True)
class XAttention(Policy):
    """Tiles of ``block`` tokens; ``keep`` > 0 keeps that many per list in place of a threshold."""

    paper: ClassVar[str] = (
        "Xu et al., XAttention: Block Sparse Attention with Antidiagonal Scoring, ICML 2025"
    )
    knob: ClassVar[Knob | None] = Knob(name="threshold", least=0.0, most=1.0)
    block: int = 128
    stride: int = 16
    threshold: float = 0.9
    keep: int = 0
    norm: float = 1.0
    """Divides the sums further; below 1 sharpens them."""
    shared: bool = False
    """One list per key/value head."""
    steps: str = ""
    """By how many steps of 0.9 each query head's threshold is below ``threshold``, e.g. 0-3-10-1;
    ``head_thresholds.fit_heads`` finds them."""

    def __post_init__(self) -> None:
        if self.steps and not all(item.isdecimal() for item in self.steps.split("-")):
            raise AttentionError(
                f"xattention: steps is {self.steps!r}, needs one number per query head, e.g. 0-3-10"
            )
        if self.steps and (self.shared or self.keep):
            other = "shared" if self.shared else "keep"
            raise AttentionError(
                f"xattention: steps are of single heads' thresholds; leave {other}"
            )
        if self.block % self.stride:
            raise AttentionError(
                f"xattention: stride {self.stride} does not divide block {self.block}"
            )

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Mass of all tiles by strided sums."""
        blocks = (self.block, self.block)
        status, forced = own_and_first(context.layout, blocks)
        T = self.antidiagonal_mass(q, k, context)
        T = per_group(T, k.shape[1]) if self.shared else T
        if self.keep:
            selection = pick_top(T, status.visible, forced, self.keep, blocks=blocks)
        else:
            share = self._shares(T) if self.steps else self.threshold
            selection = pick_share(T, status.visible, forced, share, blocks=blocks)
        return Choice(selection=selection)

    def _shares(self, T: Tensor) -> Tensor:
        """fp32 [H, 1, 1]: every head's own threshold."""
        steps = [int(item) for item in self.steps.split("-")]
        if len(steps) != T.shape[1]:
            raise AttentionError(
                f"xattention: steps for {len(steps)} heads, the model's attention has {T.shape[1]}"
            )
        return self.threshold * FALL ** torch.tensor(steps, device=T.device)[:, None, None]

    def antidiagonal_mass(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        """fp32 [B, H, nq, nk]"""
        S, per_tile = self.stride, self.block // self.stride
        layout = _strided(context.layout, S, self.block)
        factor = context.scale / (S * self.norm)
        scored = [
            _mass_of_head(queries, keys, layout, head, per_tile, factor)
            for queries, keys, head in self._heads(q, k)
        ]
        return torch.cat(scored, 1).view(*q.shape[:2], *scored[0].shape[2:])

    def _heads(self, q: Tensor, k: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        """Strided queries [1, G, n, S D] (reversed within S) and keys [1, n, S D] of each
        key/value head."""
        groups = q.shape[1] // k.shape[1]
        for text in range(q.shape[0]):
            for head in range(k.shape[1]):
                Q, K = q[text, head * groups : (head + 1) * groups], k[text, head : head + 1]
                Q, K = (_concatenate(x, self.stride, self.block) for x in (Q, K))
                Q = Q.unflatten(-1, (self.stride, -1)).flip(-2).flatten(-2)
                yield Q[None], K, (text, head)


def _mass_of_head(
    Q: Tensor, K: Tensor, layout: Layout, head: tuple[int, int], per_tile: int, factor: float
) -> Tensor:
    """fp32 [1, G, nq, nk] of one key/value head's queries, some tiles at a time."""
    layout = layout.of_text(*head)
    found = []
    for start in range(0, Q.shape[2], TILES_AT_ONCE * per_tile):
        part = slice(start, start + TILES_AT_ONCE * per_tile)
        seen = layout.of_queries(part).visible()
        some = seen.flatten(0, -2).any(0).nonzero()
        columns = (int(some.amax()) // per_tile + 1 if len(some) else 1) * per_tile
        # as a linear layer: a batched product would copy the transposed keys
        W = F.linear(Q[0, :, part].flatten(0, 1), K[0, :columns])
        W = W.float().mul_(factor).view(1, Q.shape[1], -1, columns)
        W = torch.softmax(W.masked_fill_(~seen[..., :columns], -torch.inf), -1).nan_to_num_(0.0)
        W = W.view(*W.shape[:2], -1, per_tile, columns // per_tile, per_tile).sum((3, 5))
        found.append(F.pad(W, (0, (K.shape[1] - columns) // per_tile)))
    return torch.cat(found, 2)


def _strided(layout: Layout, S: int, block: int) -> Layout:
    """Groups of S slots as slots: last position of the queries, first of the keys."""

    def grouped(values: Tensor, fill: int) -> Tensor:
        padded = F.pad(values, (0, -values.shape[-1] % block), value=fill)
        return padded.view(*values.shape[:2], -1, S)

    keys = grouped(layout.k_position, -1)
    first = keys.masked_fill(keys < 0, NOWHERE).amin(-1)
    return replace(
        layout,
        q_position=grouped(layout.q_position, -1).amax(-1),
        k_position=first.masked_fill(first == NOWHERE, -1),
        window=None if layout.window is None else layout.window + 2 * S,
        q_segment=None if layout.q_segment is None else grouped(layout.q_segment, 0)[..., 0],
        k_segment=None if layout.k_segment is None else grouped(layout.k_segment, 0)[..., 0],
        allowed=None,
        q_order=None,
        k_order=None,
    )


def _concatenate(x: Tensor, S: int, block: int) -> Tensor:
    """[h, N, D] -> [h, ceil(N / block) * block / S, S * D]"""
    x = filled_up(x, block)
    return x.reshape(len(x), -1, S * x.shape[-1])


POLICY = XAttention
