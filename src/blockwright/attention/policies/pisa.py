"""PISA: few tiles exactly, all others by the first terms of a Taylor expansion.

Paper:   "PISA: Piecewise Sparse Attention", 2026.
Idea:    scores vary little inside an unimportant tile, so its exponentials are expanded around the
         mean key: the zeroth term needs the mean key and mean value, the first one the covariance
         of keys and values.  Nothing is dropped, so even flat attention is served.

Equations -> code
    keep the best density * nk tiles by scale * mean(q) . mean(k)        choose
    tail: n_j exp(scale q . kbar_j) vbar_j                               FarField, log n_j
    o += exp(lse_tail - lse) (scale / N) q . sum_j H_j                   finish
    H_j = sum over the tile (k - kbar_j)^T v                             _covariance
Shapes:  kbar, vbar [B, Hkv, nk, D]; sum of H_j [B, Hkv, D, Dv].
Cost:    1 / block of dense for the tail, 2 N D Dv once for the covariance.
Differs from the paper: nothing known; the form with one covariance for all tiles, as used there
         in practice.
Checked: exact where tiles are constant; errors of zeroth and first order,
         tests/claims/test_attention_order.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.engines.cpu import attend_far
from blockwright.attention.far import FarField
from blockwright.attention.heads import grouped_scores
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.picking import pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.tiles import cut, tile_status


@dataclass(frozen=True, kw_only=True)
class Pisa(Policy):
    """``share`` of the tiles exactly; ``order`` of the expansion for the others, 0 or 1."""

    paper: ClassVar[str] = "PISA: Piecewise Sparse Attention, 2026"
    knob: ClassVar[Knob | None] = Knob(name="share", least=0.0, most=1.0)
    causal: ClassVar[bool] = False
    block: int = 64
    share: float = 0.15
    order: int = 1

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Pooled scores, and the summaries of all tiles."""
        layout, block = context.layout, self.block
        status = tile_status(layout, block, block)
        kbar = pooled_mean(k, layout.k_position, block)
        scores = grouped_scores(pooled_mean(q, layout.q_position, block), kbar)
        tiles = int(status.visible.any(-2).sum(-1).max())
        keep = max(1, round(self.share * tiles))
        selection = pick_top(scores, status.visible, status.own, keep, blocks=(block, block))
        count = cut(layout.k_position >= 0, block, fill=0).sum(-1)
        tail = FarField(
            key=kbar,
            value=pooled_mean(v, layout.k_position, block),
            log_weight=count.log(),
            hide=selection,
        )
        return Choice(selection=selection, far=(tail,))

    def finish(
        self, part: Partial, q: Tensor, k: Tensor, v: Tensor, choice: Choice, context: Context
    ) -> Partial:
        """Add the first order of the tail."""
        if not self.order:
            return part
        layout = context.layout
        tail = attend_far(q, choice.far[0], layout, context.scale)
        share = torch.exp(tail.lse - part.lse).nan_to_num(0.0)[..., None]
        H = _covariance(k, v, layout, self.block)
        tokens = (layout.k_position >= 0).sum(-1)[..., None, None]
        slope = context.scale / tokens * grouped_scores(q, H.mT)
        output = part.output + share * slope
        return Partial(output=output.to(part.output.dtype), lse=part.lse)


def _covariance(k: Tensor, v: Tensor, layout: Layout, block: int) -> Tensor:
    """fp32 [B, Hkv, D, Dv]: sum over tiles and their tokens of (k - kbar)^T v."""
    token = (layout.k_position >= 0)[..., None]
    mean = pooled_mean(k, layout.k_position, block).repeat_interleave(block, 2)
    centred = (k.float() - mean[:, :, : k.shape[2]]) * token
    return torch.matmul(centred.mT, v.float())


POLICY = Pisa
