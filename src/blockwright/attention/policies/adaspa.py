"""AdaSpa: look for the heavy tiles exactly, but seldom: they stay the same from step to step.

Paper:   Y. Xia et al., "Training-free and Adaptive Sparse Attention for Efficient Long Video
         Generation", ICCV 2025.
Idea:    tile masses differ by input, layer and head, but hardly change between denoising steps, and
         neither does a row's log-sum-exp.  So true masses are computed at a few steps, in one pass
         with the last step's log-sum-exp, and the steps between reuse the tiles.  Heads whose mass
         is concentrated give tiles to heads whose mass is spread.

Equations -> code
    W[a, b] = sum over the tile of exp(S_ij - lse_i)                  mass.tile_mass
    keep the best share of each row, by W                             _budgets, choose
    recall_h high: halve its budget, hand it to the lowest            _moved
Shapes:  W [B, H, nq, nk]; one budget per head.
Cost:    a search step is dense attention and a second look at its scores.
Differs from the paper: 1. the search is a pass of its own beside dense attention, not fused into
         it.  2. outside of denoising (no ``Context.step``) every call searches.  3. heads hand
         tiles over only where that raises their joint recall, which the search knows.
Checked: reused tiles under drift and after a change, budgets by head,
         tests/claims/test_attention_video.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import spread
from blockwright.attention.mass import tile_mass
from blockwright.attention.partial import Partial
from blockwright.attention.picking import ordered_top
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import TileStatus, tile_status

TILES, LSE = "adaspa.tiles", "adaspa.lse"
"""What is kept between steps: bool [B, H, nq, nk], and fp32 [B, H, N]."""


@dataclass(frozen=True, kw_only=True)
class AdaSpa(Policy):
    """``share`` of the tiles; dense before step ``warm``, searched there and every ``every``."""

    paper: ClassVar[str] = (
        "Xia et al., Training-free and Adaptive Sparse Attention for Efficient Long Video "
        "Generation, ICCV 2025"
    )
    knob: ClassVar[Knob | None] = Knob(name="share", least=0.0, most=1.0)
    causal: ClassVar[bool] = False
    remembers: ClassVar[bool] = True
    block: int = 64
    share: float = 0.2
    warm: int = 10
    every: int = 20
    by_head: bool = True
    """Budgets follow the heads' recalls."""

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Dense while warming up and searching, the tiles of the last search between."""
        step, memory = context.step, context.memory
        status = tile_status(context.layout, self.block, self.block)
        if step is None:
            return self._of_mask(self._search(q, k, context, status, None))
        if step == 0:
            memory.pop(TILES, None)
            memory.pop(LSE, None)
        if step < self.warm:
            return Choice(selection=None)
        tiles = memory.get(TILES)
        wanted = (*q.shape[:2], *status.visible.shape[2:])
        if (step - self.warm) % self.every and tiles is not None and tiles.shape == wanted:
            return self._of_mask(tiles)
        lse = memory.get(LSE)
        known = lse if lse is not None and lse.shape == q.shape[:3] else None
        memory[TILES] = self._search(q, k, context, status, known)
        return Choice(selection=None)

    def finish(
        self, part: Partial, q: Tensor, k: Tensor, v: Tensor, choice: Choice, context: Context
    ) -> Partial:
        """Keep the log-sum-exp of dense steps."""
        if context.step is not None and choice.selection is None:
            context.memory[LSE] = part.lse
        return part

    def _of_mask(self, tiles: Tensor) -> Choice:
        return Choice(selection=Selection.of_mask(tiles, self.block, self.block))

    def _search(
        self, q: Tensor, k: Tensor, context: Context, status: TileStatus, lse: Tensor | None
    ) -> Tensor:
        """bool [B, H, nq, nk]: the heaviest tiles, the own one among them."""
        blocks = (self.block, self.block)
        W = tile_mass(q, k, context.layout, context.scale, blocks, lse=lse)
        visible, own = (
            spread(x, q.shape[1]).expand(len(q), -1, -1, -1) for x in (status.visible, status.own)
        )
        ranked = W.masked_fill(own, torch.inf).masked_fill(~visible, -torch.inf)
        order = ordered_top(ranked, ranked.shape[-1])
        most = int(visible.sum(-1).max())
        keep = torch.full(W.shape[:2], max(1.0, self.share * most), device=q.device)
        if self.by_head and self.share < 1:
            keep = _budgets(W.gather(-1, order), keep, most)
        rank = torch.arange(ranked.shape[-1], device=q.device)
        count = keep.round()[..., None, None].clamp(min=1)
        taken = (rank < count).expand_as(order)
        return (
            torch.zeros(order.shape, dtype=torch.bool, device=q.device).scatter_(-1, order, taken)
            & visible
        )


def _budgets(sorted_mass: Tensor, keep: Tensor, most: int) -> Tensor:
    """fp32 [B, H]: tiles per row, moved between heads; ``sorted_mass`` [B, H, nq, nk] in the order
    of choice."""
    mass = sorted_mass.sum(2).cumsum(-1)
    recall = torch.nn.functional.pad(mass / mass[..., -1:].clamp(min=1e-30), (1, 0))
    texts = zip(recall.tolist(), keep.tolist(), strict=True)
    return torch.tensor([_moved(*text, most) for text in texts], device=keep.device)


def _moved(recall: list[list[float]], keep: list[float], most: int) -> list[float]:
    """Half of the tiles of the head with the highest recall to that with the lowest, and so on
    inwards, where the one gains more than the other loses; ``recall`` by head and tiles."""

    def kept(head: int, tiles: float) -> float:
        return recall[head][min(round(tiles), len(recall[head]) - 1)]

    order = sorted(range(len(keep)), key=lambda head: -kept(head, keep[head]))
    budgets = list(keep)
    for high, low in zip(order[: len(order) // 2], reversed(order), strict=False):
        moved = min(keep[high] / 2, most - keep[low])
        after = kept(high, keep[high] - moved) + kept(low, keep[low] + moved)
        if after > kept(high, keep[high]) + kept(low, keep[low]):
            budgets[high], budgets[low] = keep[high] - moved, keep[low] + moved
    return budgets


POLICY = AdaSpa
