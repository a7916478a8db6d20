"""VMoBA: MoBA for video: blocks of space and time, chosen over a whole head.

Paper:   J. Wu et al., "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", 2025.
Idea:    what is near in a video is near in time, in the image, or in both, so the shape of the
         blocks cycles over the layers: slices of frames, columns through all frames, boxes.
         Queries differ in what they need, so (query, block) pairs of a whole head compete for one
         budget: the best of them that hold a share of the normalised similarity.

Equations -> code
    g[i, t] = q_i . mean(k of t)                                             choose
    g' = (g - min) / (max - min), over all pairs of a head                   _chosen
    own blocks, then the shortest prefix by g' that reaches threshold        _chosen
Shapes:  g [B, H, N, C] for C blocks of a box's tokens.
Cost:    1 / (2 block) of dense, and a sort of N C numbers per head.
Differs from the paper: 1. own block and routed ones are one list, with the same result.  2. sides
         that the box does not divide are padded, not refused.  3. without a grid, blocks are runs
         of as many tokens as ``boxes`` has.
Checked: each shape on data that suits it, global against per-query choice,
         tests/claims/test_attention_video.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.heads import grouped_scores
from blockwright.attention.layout import PADDING
from blockwright.attention.picking import pick_top, pooled_mean
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.errors import AttentionError


@dataclass(frozen=True, kw_only=True)
class Vmoba(Policy):
    """``threshold`` of a head's normalised similarity; ``keep`` > 0: that many blocks per query.

    ``slices``, ``columns`` and ``boxes`` are frames x rows x columns, 0 for a whole side; layer l
    uses shape l mod 3.
    """

    paper: ClassVar[str] = (
        "Wu et al., VMoBA: Mixture-of-Block Attention for Video Diffusion Models, 2025"
    )
    knob: ClassVar[Knob | None] = Knob(name="threshold", least=0.0, most=1.0)
    causal: ClassVar[bool] = False
    threshold: float = 0.25
    keep: int = 0
    slices: str = "1x0x0"
    columns: str = "0x4x4"
    boxes: str = "2x8x8"

    def __post_init__(self) -> None:
        for name in ("slices", "columns", "boxes"):
            _sides(name, getattr(self, name))

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Order keys by block, route every query."""
        kind = 2 if context.grid is None else (context.layer or 0) % 3
        name = ("slices", "columns", "boxes")[kind]
        block_of = blocks_of(k.shape[2], context.grid, _sides(name, getattr(self, name)))
        order, size = _ordered(block_of.to(k.device))
        layout = context.layout
        real = order >= 0
        slots = order.clamp(min=0)[None, None]
        position = torch.take_along_dim(layout.k_position, slots, -1)
        layout = replace(layout.reordered(slots), k_position=position.masked_fill(~real, PADDING))
        means = pooled_mean(k[:, :, slots[0, 0]], layout.k_position, size)
        gate = grouped_scores(q, means)
        own = F.one_hot(block_of.to(k.device), gate.shape[-1]).bool()[None, None]
        own = own[:, :, own.shape[2] - q.shape[2] :]
        filled = (layout.k_position.unflatten(-1, (-1, size)) >= 0).any(-1)
        visible = filled[:, :, None] & (layout.q_position >= 0)[..., None]
        if self.keep:
            picked = pick_top(gate, visible, own, self.keep, blocks=(1, size))
            return Choice(selection=picked, layout=layout)
        chosen = _chosen(gate, visible, own & visible, self.threshold)
        return Choice(selection=Selection.of_mask(chosen, 1, size), layout=layout)


def blocks_of(
    tokens: int, grid: tuple[int, int, int] | None, sides: tuple[int, int, int]
) -> Tensor:
    """int64 [tokens]: the block of each token; runs of as many tokens where there is no grid."""
    if grid is None:
        return torch.arange(tokens) // math.prod(side or 1 for side in sides)
    if math.prod(grid) != tokens:
        raise AttentionError(f"vmoba: a grid of {'x'.join(map(str, grid))} has not {tokens} tokens")
    sizes = [side or whole for side, whole in zip(sides, grid, strict=True)]
    counts = [-(-whole // size) for whole, size in zip(grid, sizes, strict=True)]
    t, y, x = (torch.arange(whole) // size for whole, size in zip(grid, sizes, strict=True))
    block = (t[:, None, None] * counts[1] + y[:, None]) * counts[2] + x
    return block.flatten()


def _ordered(block_of: Tensor) -> tuple[Tensor, int]:
    """Tokens block by block, each block filled up with -1 to the size of the largest."""
    count = torch.bincount(block_of)
    size = int(count.max())
    order = torch.full((len(count), size), -1, device=block_of.device)
    sorted_tokens = block_of.argsort(stable=True)
    first = count.cumsum(0) - count
    owner = block_of[sorted_tokens]
    order[owner, torch.arange(len(block_of), device=owner.device) - first[owner]] = sorted_tokens
    return order.flatten(), size


def _chosen(gate: Tensor, visible: Tensor, own: Tensor, threshold: float) -> Tensor:
    """bool [B, H, N, C]: own blocks, and the best pairs of each head up to a share of the sum."""
    visible, own = (x.expand_as(gate) for x in (visible, own))
    if threshold >= 1:
        return visible
    lowest = gate.masked_fill(~visible, torch.inf).amin((2, 3), keepdim=True)
    highest = gate.masked_fill(~visible, -torch.inf).amax((2, 3), keepdim=True)
    spread = highest - lowest
    normed = (gate - lowest) / torch.where(spread > 1e-6, spread, 1.0)
    normed = normed.masked_fill(~visible, 0.0).flatten(2)
    own, visible = own.flatten(2), visible.flatten(2)
    wanted = threshold * normed.sum(-1, keepdim=True)
    ranked = normed.masked_fill(own, torch.inf).masked_fill(~visible, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    before = F.pad(normed.gather(-1, order).cumsum(-1)[..., :-1], (1, 0))
    taken = torch.zeros_like(own).scatter_(-1, order, before < wanted)
    return ((taken | own) & visible).view_as(gate)


def _sides(name: str, text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise AttentionError(f"vmoba: {name} is {text!r}, needs FRAMESxROWSxCOLUMNS, e.g. 2x8x8")
    return int(parts[0]), int(parts[1]), int(parts[2])


POLICY = Vmoba
