"""BlockRank: documents see the instruction and themselves, the query sees everything.

Paper:   N. Gupta et al., "Scalable In-context Ranking with Generative Models" (BlockRank), 2025.
Idea:    in a prompt of an instruction, many documents and a query, documents hardly look at each
         other.  Made a rule, that turns the quadratic cost into a linear one, and the order of the
         documents stops to matter.  What the query's tokens look at in a middle block ranks the
         documents without writing a token.

Equations -> code
    document: instruction and own; instruction: itself; query: all (each causally)    choose
    r_d = mean over heads and rows of softmax over document tokens, summed in d       relevance
    -log(sum of relevant exp(r_d / T) / sum of all exp(r_d / T))                      ranking_loss
Shapes:  spans [M + 1] of M parts: instruction, M - 2 documents, query; r [B, M - 2].
Cost:    visited pairs grow with the number of documents; choosing costs nothing.
Differs from the paper: 1. parts need not be equally long; without ``Context.spans`` they are, as in
         the paper, ``length`` tokens.  2. position ids, which the paper restarts in every document,
         are the caller's: order decides what is visible, ids only rotate.
Checked: equals attention under the explicit mask; cost; shuffled documents; ranking by planted
         matches, before and after training, tests/claims/test_attention_ranking.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import grouped_scores
from blockwright.attention.layout import SEES_ALL, SHARED
from blockwright.attention.policy import Choice, Context, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status

TEMPERATURE = 0.05
"""Of the ranking loss."""


@dataclass(frozen=True, kw_only=True)
class BlockRank(Policy):
    """Parts of ``length`` tokens where the caller gives no spans; tiles of ``block``."""

    paper: ClassVar[str] = (
        "Gupta et al., Scalable In-context Ranking with Generative Models (BlockRank), 2025"
    )
    train_safe: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    length: int = 160
    block: int = 32

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """All tiles with a visible pair under the narrower rule."""
        layout = context.layout
        k_part = self._parts(layout.k_position, context.spans)
        last = k_part.amax(-1, keepdim=True)
        queries = layout.q_position.shape[-1]
        q_part = k_part[..., k_part.shape[-1] - queries :][:, :1]
        layout = replace(
            layout,
            q_segment=q_part.masked_fill(q_part == last[:, :1], SEES_ALL),
            k_segment=k_part.masked_fill(k_part == 0, SHARED),
        )
        status = tile_status(layout, self.block, self.block)
        selection = Selection.of_mask(status.visible, self.block, self.block)
        return Choice(selection=selection, layout=layout)

    def _parts(self, position: Tensor, spans: Tensor | None) -> Tensor:
        """int64 like ``position``: the part of every key; what follows the last is its end."""
        if spans is None:
            return position.clamp(min=0) // self.length
        slots = torch.arange(position.shape[-1], device=position.device)
        parts = torch.bucketize(slots, spans[1:-1].to(slots), right=True)
        return parts.expand_as(position)


def relevance(q: Tensor, k: Tensor, spans: Tensor, scale: float) -> Tensor:
    """fp32 [B, M - 2]: how much rows q [B, H, n, D] look at each document of k [B, Hkv, N, D]."""
    first, end = int(spans[1]), int(spans[-2])
    scores = grouped_scores(q, k[:, :, first:end]) * scale
    P = torch.softmax(scores, -1).mean((1, 2))
    below = torch.nn.functional.pad(P.cumsum(-1), (1, 0))
    edges = (spans[1:-1] - first).to(P.device)
    return below[:, edges[1:]] - below[:, edges[:-1]]


def ranking_loss(found: Tensor, relevant: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean over the batch, of relevances [B, M - 2] and bool [B, M - 2]; at least one is true."""
    logits = found / temperature
    best = logits.masked_fill(~relevant, -torch.inf).logsumexp(-1)
    return (logits.logsumexp(-1) - best).mean()


POLICY = BlockRank
