"""Quest: pages of keys by an upper bound of what any key in them can score.

Paper:   J. Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
         ICML 2024.
Idea:    keep each page's channelwise least and greatest key.  Taking the better of the two in
         every channel bounds q . k from above for all keys of the page, so one hot key cannot
         hide in a mean.  In many noisy channels the bound is loose.

Equations -> code
    U(q, page) = sum_c max(q_c max_c, q_c min_c) >= max q . k     page_bound
Shapes:  D channels; one bound per query (or mean query of a tile) and page.
Cost:    1 / page of the cache is read to choose.
Differs from the paper: 1. prefill, where the paper is dense, uses the mean query of a tile: then
         the bound is a heuristic.  2. the paper's first two dense layers are ``dense_layers``,
         used where the caller says which layer it is.
Checked: the bound, exactly, and hits on a planted key, tests/claims/test_attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.heads import grouped_scores
from blockwright.attention.layout import Layout
from blockwright.attention.picking import own_and_first, pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy


@dataclass(frozen=True, kw_only=True)
class Quest(Policy):
    """``keep`` pages of ``key_block`` tokens per list."""

    paper: ClassVar[str] = (
        "Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, "
        "ICML 2024"
    )
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    decode: ClassVar[bool] = True
    query_block: int = 64
    key_block: int = 16
    keep: int = 64
    dense_layers: int = 2

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Bounds for single queries, or for the mean query of each tile."""
        if context.layer is not None and context.layer < self.dense_layers:
            return Choice(selection=None)
        layout = context.layout
        blocks = (1 if q.shape[2] == 1 else self.query_block, self.key_block)
        status, forced = own_and_first(layout, blocks)
        queries = pooled_mean(q, layout.q_position, blocks[0])
        scores = page_bound(queries, k, layout, self.key_block)
        return Choice(selection=pick_top(scores, status.visible, forced, self.keep, blocks=blocks))


def page_bound(queries: Tensor, k: Tensor, layout: Layout, page: int) -> Tensor:
    """fp32 [B, H, n, pages]: at least q . k for every key of the page."""
    token = (layout.k_position >= 0)[..., None]
    missing = (0, 0, 0, -k.shape[2] % page)

    def extreme(fill: float, *, greatest: bool) -> Tensor:
        filled = torch.nn.functional.pad(k.float().masked_fill(~token, fill), missing, value=fill)
        pages = filled.view(*k.shape[:2], -1, page, k.shape[-1])
        found = pages.amax(3) if greatest else pages.amin(3)
        return found.masked_fill(found.isinf(), 0.0)  # a page without tokens

    high, low = extreme(-torch.inf, greatest=True), extreme(torch.inf, greatest=False)
    return grouped_scores(queries.clamp(min=0), high) + grouped_scores(queries.clamp(max=0), low)


POLICY = Quest
