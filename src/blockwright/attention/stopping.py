"""Early stop: walk every list part by part, most important first, until a part adds too little.

Source: S2O (2026), by stages: partial results are merged by log-sum-exp, so any engine serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial, merge
from blockwright.attention.policy import Stop
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut


def attend_until(
    attend: Callable[[Selection], Partial], selection: Selection, layout: Layout, stop: Stop
) -> tuple[Partial, Selection]:
    """The result, and the part of the lists that was visited.

    ``selection`` has a list for every query head; ``attend`` covers a selection's pairs.
    """
    first = selection.part(0, stop.part)
    total, visited = attend(first), first.count.clone()
    running = selection.count > stop.part
    start = parts = 1
    for start in range(stop.part, selection.index.shape[-1], stop.part):
        piece = selection.part(start, start + stop.part)
        piece = replace(piece, count=piece.count * running)
        if not bool(piece.count.any()):
            break
        more = attend(piece)
        total = merge([total, more])
        visited += piece.count
        parts += 1
        if parts >= stop.least_parts:
            running = running & (
                _gain(more, total, selection.query_block, layout, stop) >= stop.below
            )
    return total, replace(selection, count=visited)


def dropped_bound(whole: Selection, visited: Selection, stop: Stop) -> Tensor:
    """[B, H, nq]: the most that what was not visited adds to a row's softmax sum, as a share of it,
    where lists are in the true order and every row was judged (``worst_row``)."""
    return -(-(whole.count - visited.count) // stop.part) * stop.below


def _gain(more: Partial, total: Partial, block: int, layout: Layout, stop: Stop) -> Tensor:
    """[B, H, nq]: share of the softmax sum that the last part added to each query tile."""
    share = torch.exp(more.lse - total.lse).nan_to_num(0.0)
    real = (layout.q_position >= 0).expand_as(share)
    tiles = cut(share * real, block, fill=0)
    if stop.worst_row:
        return tiles.amax(-1)
    return tiles.sum(-1) / cut(real.float(), block, fill=0).sum(-1).clamp(min=1)
