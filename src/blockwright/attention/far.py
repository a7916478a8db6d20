"""Summary keys: few rows that stand for many tokens outside the visited tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.attention.layout import Layout
from blockwright.attention.selection import Selection


@dataclass(frozen=True, kw_only=True)
class FarField:
    """r summaries; their scores get ``log_weight`` added before the softmax."""

    key: Tensor
    """[B, Hkv, r, D]"""
    value: Tensor
    """[B, Hkv, r, Dv]"""
    log_weight: Tensor
    """fp32 [B or 1, h, r]: log of the number of tokens that a mean stands for; -inf hides it."""
    last_position: Tensor | None = None
    """int64 [B or 1, h, r]: seen by later positions only; None: by all."""
    hide: Selection | None = None
    """Summary t is hidden from a query tile that visits tile t."""
    show: Selection | None = None
    """Summary t is seen only by query tiles that list it."""

    def bias(self, layout: Layout) -> Tensor:
        """fp32 [B or 1, h, Nq or 1, r]: what is added to the scores; -inf where not seen."""
        bias = self.log_weight.float()[:, :, None, :]
        summaries, queries = bias.shape[-1], layout.q_position.shape[-1]
        seen = (layout.q_position >= 0)[..., None]
        if self.last_position is not None:
            seen = seen & (self.last_position[:, :, None, :] < layout.q_position[..., None])
        for selection, wanted in ((self.hide, False), (self.show, True)):
            if selection is not None:
                listed = selection.to_mask(summaries)
                rows = listed.repeat_interleave(selection.query_block, -2)[..., :queries, :]
                seen = seen & (rows == wanted)
        return torch.where(seen, bias, -torch.inf)
