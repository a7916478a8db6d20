"""Where tokens stand: positions decide what is visible, slots decide what lies in which tile.

A *slot* is a row of the tensors as they are multiplied, a *position* the token's place in its text.
Masks compare positions; tiles are made of consecutive slots.  Shapes: B batch, h heads (1, the
key/value heads, or all query heads), Nq and Nk slots, nq and nk tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blockwright.attention.heads import align

PADDING = -1
"""Position of a slot that holds no token."""
NOWHERE = 2**30
"""Beyond every position: where comparisons put an empty key slot."""
SHARED, SEES_ALL = -2, -3
"""Segments: a key that every query may see; a query that may see every key."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What each query slot may see.

    visible(i, j) = both are tokens, of one segment, allowed, and k <= q when causal, and
    q - k < window or k < sink when there is a window (|q - k| where not causal).
    """

    q_position: Tensor
    """int64 [B or 1, 1, Nq]; ``PADDING`` where there is no token."""
    k_position: Tensor
    """int64 [B or 1, h, Nk]"""
    causal: bool = True
    window: int | None = None
    sink: int = 0
    """Keys before this position are visible whatever the window."""
    q_segment: Tensor | None = None
    """int64 [B or 1, 1, Nq]: document of each query."""
    k_segment: Tensor | None = None
    """int64 [B or 1, h, Nk]"""
    allowed: Tensor | None = None
    """bool [B or 1, 1 or h, Nq, Nk]: any further mask, slot by slot."""
    q_order: Tensor | None = None
    """int64 [B or 1, 1, Nq]: row of the tensors behind each slot; None where slots are rows."""
    k_order: Tensor | None = None
    """int64 [B or 1, h, Nk]"""

    @classmethod
    def plain(
        cls,
        queries: int,
        keys: int,
        *,
        causal: bool = True,
        window: int | None = None,
        device: torch.device | None = None,
    ) -> Layout:
        """No padding; the last query stands at the last key."""
        k_position = torch.arange(keys, device=device)[None, None]
        first = keys - queries
        return cls(
            q_position=torch.arange(first, keys, device=device)[None, None],
            k_position=k_position,
            causal=causal,
            window=window,
        )

    @property
    def is_plain(self) -> bool:
        """Whether causality is the only rule and positions count up together to the last key."""
        if any(
            item is not None
            for item in (self.window, self.q_segment, self.allowed, self.q_order, self.k_order)
        ):
            return False
        keys, queries = self.k_position.shape[-1], self.q_position.shape[-1]
        counted = torch.arange(keys, device=self.k_position.device)
        return bool(
            (self.k_position == counted).all()
            and (self.q_position == counted[keys - queries :]).all()
        )

    def reordered(self, k_order: Tensor) -> Layout:
        """The same tokens with the keys in another order; ``k_order`` is int64 [B or 1, h, Nk]."""
        k_order = k_order if self.k_order is None else _take(self.k_order, k_order)
        return replace(
            self,
            k_order=k_order,
            k_position=_take(self.k_position, k_order),
            k_segment=None if self.k_segment is None else _take(self.k_segment, k_order),
            allowed=None if self.allowed is None else _take_keys(self.allowed, k_order),
        )

    def of_queries(self, rows: slice | Tensor) -> Layout:
        """The same keys, some of the query slots."""
        return replace(
            self,
            q_position=self.q_position[..., rows],
            q_segment=None if self.q_segment is None else self.q_segment[..., rows],
            q_order=None if self.q_order is None else self.q_order[..., rows],
            allowed=None if self.allowed is None else self.allowed[:, :, rows],
        )

    def of_text(self, text: int, head: int) -> Layout:
        """One text of the batch and one key/value head, as a batch of one."""

        def own(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            texts = min(text, len(values) - 1)
            heads = min(head, values.shape[1] - 1)
            return values[texts : texts + 1, heads : heads + 1]

        if self.allowed is not None:
            raise ValueError("a free mask has query heads")
        return replace(
            self,
            q_position=self.q_position[min(text, len(self.q_position) - 1)][None],
            k_position=own(self.k_position),  # type: ignore[arg-type]
            q_segment=own(self.q_segment),
            k_segment=own(self.k_segment),
            q_order=own(self.q_order),
            k_order=own(self.k_order),
        )

    def visible(self) -> Tensor:
        """bool [B or 1, h, Nq, Nk]"""
        seen = self.visible_between(
            self.q_position,
            self.k_position[:, :, None, :],
            self.q_segment,
            None if self.k_segment is None else self.k_segment[:, :, None, :],
        )
        if self.allowed is None:
            return seen
        seen, allowed = align(seen, self.allowed)
        return seen & allowed

    def visible_between(
        self,
        q_position: Tensor,
        k_position: Tensor,
        q_segment: Tensor | None = None,
        k_segment: Tensor | None = None,
    ) -> Tensor:
        """The rule on any positions: bool [..., L, M] of [..., L] and [..., 1, M]; not
        ``allowed``.  Positions of empty key slots may be below zero, or ``NOWHERE``."""
        query = q_position[..., None]
        k_position = k_position.masked_fill(k_position < 0, NOWHERE)  # small: [..., 1, M]
        token = k_position < NOWHERE
        # an empty query slot stands at -1: where causal it sees nothing anyway
        seen = k_position <= query if self.causal else token & (query >= 0)
        if self.window is not None:
            near = (query - k_position).abs() < self.window
            seen = seen & (near | (k_position < self.sink))
        if q_segment is not None and k_segment is not None:
            own = q_segment[..., None]
            seen = seen & ((own == k_segment) | (k_segment == SHARED) | (own == SEES_ALL))
        return seen


def _take(values: Tensor, order: Tensor) -> Tensor:
    values, order = align(values, order)
    return torch.take_along_dim(values, order, -1)


def _take_keys(allowed: Tensor, order: Tensor) -> Tensor:
    allowed, order = align(allowed, order)
    return torch.take_along_dim(allowed, order[:, :, None], -1)
