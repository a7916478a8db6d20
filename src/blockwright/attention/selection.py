"""Which key tiles each query tile visits: ordered, counted lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.heads import align


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Lists of key tiles.  ``h`` is 1, the number of key/value heads, or that of query heads."""

    query_block: int
    """Query slots per tile; 1 where every token has its own list."""
    key_block: int
    index: Tensor
    """int64 [B or 1, h, nq, m]: key tiles in the order of visiting; beyond ``count``: anything."""
    count: Tensor
    """int64 [B or 1, h, nq]: entries of each list."""

    @classmethod
    def of_mask(cls, mask: Tensor, query_block: int, key_block: int) -> Selection:
        """From bool [B or 1, h, nq, nk], tiles in ascending order."""
        count = mask.sum(-1)
        longest = max(1, int(count.max()))
        index = (~mask).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :longest]
        return cls(query_block=query_block, key_block=key_block, index=index, count=count)

    @property
    def used(self) -> Tensor:
        """bool [B or 1, h, nq, m]: which entries count."""
        slots = torch.arange(self.index.shape[-1], device=self.index.device)
        return slots < self.count[..., None]

    def to_mask(self, key_tiles: int) -> Tensor:
        """bool [B or 1, h, nq, nk]"""
        shape = (*self.index.shape[:-1], key_tiles + 1)
        mask = torch.zeros(shape, dtype=torch.bool, device=self.index.device)
        mask.scatter_(-1, self.index.masked_fill(~self.used, key_tiles), True)
        return mask[..., :key_tiles]

    def to_pairs(self, queries: int, keys: int) -> Tensor:
        """bool [B or 1, h, Nq, Nk]: the pairs inside visited tiles."""
        tiles = self.to_mask(-(-keys // self.key_block))
        rows = tiles.repeat_interleave(self.query_block, -2)[..., :queries, :]
        return rows.repeat_interleave(self.key_block, -1)[..., :keys]

    def within(self, visible: Tensor) -> Selection:
        """Without the tiles that are not visible (bool [B or 1, h, nq, nk]), order kept."""
        batch = max(self.index.shape[0], visible.shape[0])
        index, used, visible = align(self.index, self.used, visible)
        index = index.expand(batch, -1, -1, -1)
        stay = visible.expand(batch, -1, -1, -1).gather(-1, index) & used
        if bool((stay == used).all()):
            return self
        order = (~stay).to(torch.uint8).sort(dim=-1, stable=True).indices
        return Selection(
            query_block=self.query_block,
            key_block=self.key_block,
            index=index.gather(-1, order),
            count=stay.sum(-1),
        )

    def part(self, start: int, stop: int) -> Selection:
        """Entries ``start`` to ``stop`` of every list."""
        count = (self.count - start).clamp(0, stop - start)
        index = self.index[..., start:stop]
        index = F.pad(index, (0, 1)) if index.shape[-1] == 0 else index
        return Selection(
            query_block=self.query_block, key_block=self.key_block, index=index, count=count
        )
