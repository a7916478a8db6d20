"""ChunkLLM: past chunks of text chosen where a chunk ends, and read until the next one does.

Paper:   H. Ouyang et al., "ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs
         Inference", 2025.
Idea:    neighbouring tokens of a chunk want the same past chunks, so the choice is made once per
         chunk, by the token that ends the one before it.  Two small trained parts beside a frozen
         model find the ends of chunks, and score chunks by their last tokens.

Equations -> code
    a[t, c] = f_q(q_t) . f_k(k_last(c)) / sqrt(d'), top-k over past chunks    _scores, _chosen
    visible: chosen, first and current chunk, and recent tokens               choose
Shapes:  one list for all heads; chunks are covered by tiles of ``block`` tokens.
Cost:    2 d' per pair of chunks, and the adapters.
Differs from the paper: 1. without trained parts (``Context.ends``, ``Context.scorer``) chunks are
         ``length`` tokens and scores the model's own q . k of last tokens.  2. a block chooses for
         itself; the vote of all blocks is not here.  3. chunks are covered by whole tiles.
Checked: trained adapters against the teacher, one choice per chunk, the detector,
         tests/claims/test_attention_chunks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.chunking import own_scores
from blockwright.attention.layout import Layout
from blockwright.attention.picking import ordered_top
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut, tile_status

CHOSEN, CURRENT = "chunkllm.chosen", "chunkllm.current"
"""What is kept between calls: the chunks that the newest one reads, bool [B, C], and its number
[B]."""


@dataclass(frozen=True, kw_only=True)
class ChunkLlm(Policy):
    """``keep`` past chunks, the ``local`` newest tokens; chunks of ``length`` unless given."""

    paper: ClassVar[str] = (
        "Ouyang et al., ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs "
        "Inference, 2025"
    )
    knob: ClassVar[Knob | None] = Knob(name="keep", least=0, most=None, whole=True)
    train_safe: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    keep: int = 16
    length: int = 64
    local: int = 512
    block: int = 16

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """One choice per chunk, spread to its tokens."""
        layout, queries = context.layout, q.shape[2]
        ends = self._ends(layout, context.ends).expand(len(q), -1)
        chunk_of = ends.long().cumsum(-1) - ends.long()
        reads = self._chosen(q, k, ends, context)
        own = chunk_of[:, chunk_of.shape[1] - queries :]
        status = tile_status(layout, 1, self.block)
        held = _in_tiles(chunk_of, layout, self.block, reads.shape[-1])
        chunks = torch.arange(reads.shape[-1], device=q.device)
        wanted = reads | (chunks == 0) | (chunks == chunks[:, None])
        tiles = (wanted.float() @ held.float() > 0).gather(
            1, own[..., None].expand(-1, -1, held.shape[-1])
        )
        newest = cut(layout.k_position, self.block).amax(-1)[:, 0, None, :]
        near = newest > layout.q_position[:, 0, :, None] - self.local
        mask = (tiles | near)[:, None] & status.visible
        return Choice(selection=Selection.of_mask(mask, 1, self.block))

    def _ends(self, layout: Layout, given: Tensor | None) -> Tensor:
        """bool [B or 1, Nk]: the key slots that end a chunk."""
        position = layout.k_position[:, 0]
        if given is None:
            return (position >= 0) & (position % self.length == self.length - 1)
        return given & (position >= 0)

    def _chosen(self, q: Tensor, k: Tensor, ends: Tensor, context: Context) -> Tensor:
        """bool [B, C, C]: the past chunks that each chunk reads; all where nobody chose.

        The token that ends chunk c - 1 chooses for chunk c; if it is no query of this call, the
        choice of an earlier call holds for the first chunk of this one.
        """
        count = ends.sum(-1)
        chunks = int(count.max()) + 1
        slots = (~ends).to(torch.uint8).sort(dim=-1, stable=True).indices[:, :chunks]
        if slots.shape[1] < chunks:
            slots = F.pad(slots, (0, chunks - slots.shape[1]))
        first = ends.shape[1] - q.shape[2]
        asked = (slots - first).clamp(min=0)
        scores = self._scores(
            torch.take_along_dim(q, asked[:, None, :, None], 2),
            torch.take_along_dim(k, slots[:, None, :, None], 2),
            context,
        )
        number = torch.arange(chunks, device=q.device)
        over = (number < count[:, None])[:, None] & (number <= number[:, None])
        order = ordered_top(scores.masked_fill(~over, -torch.inf), min(self.keep, chunks))
        by_end = torch.zeros_like(over).scatter_(-1, order, True) & over
        known = (slots >= first) & (number < count[:, None])
        by_end = torch.where(known[..., None], by_end, over)
        reads = F.pad(by_end[:, :-1], (0, 0, 1, 0))
        return self._remembered(reads, F.pad(known[:, :-1], (1, 0)), count, context)

    def _remembered(self, reads: Tensor, known: Tensor, newest: Tensor, context: Context) -> Tensor:
        """With the choice of an earlier call; that of the newest chunk is kept for the next."""
        before, current = context.memory.get(CHOSEN), context.memory.get(CURRENT)
        text, chunks = torch.arange(len(reads), device=reads.device), reads.shape[-1]
        fits = before is not None and len(before) == len(reads) and before.shape[1] <= chunks
        if before is not None and current is not None and fits:
            padded = F.pad(before, (0, chunks - before.shape[1]))
            made = known[text, current][:, None]
            reads[text, current] = torch.where(made, reads[text, current], padded)
        context.memory[CHOSEN], context.memory[CURRENT] = reads[text, newest], newest
        return reads

    def _scores(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        """fp32 [B, C, C]: of each end's query for each end's key."""
        if context.scorer is None:
            return own_scores(q, k)
        return context.scorer(q, k).float()


def _in_tiles(chunk_of: Tensor, layout: Layout, block: int, chunks: int) -> Tensor:
    """bool [B, C, nk]: which chunks have a token in each tile."""
    real = (layout.k_position[:, 0] >= 0).expand_as(chunk_of)
    tiles = cut(chunk_of.masked_fill(~real, chunks), block, fill=chunks)
    found = torch.zeros(
        *tiles.shape[:2], chunks + 1, dtype=torch.bool, device=chunk_of.device
    ).scatter_(-1, tiles, True)
    return found[..., :chunks].mT


POLICY = ChunkLlm
