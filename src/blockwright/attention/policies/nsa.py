"""NSA: attention over compressed keys says which blocks each token reads in full.

Paper:   J. Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse
         Attention", ACL 2025.
Idea:    keys of short overlapping runs are pooled; a token's attention over these few summaries is
         a cheap first look, whose probabilities, summed over the runs in a block and over the heads
         that share keys, rank the blocks.  Three branches, compressed, selected and window, are
         separate softmaxes, mixed by gates.

Equations -> code
    p_cmp = softmax(scale * q . mean(k of run)), past runs only      _compressed
    p_slc[t] = sum over runs of p_cmp * their share in block t       choose
    o = g_cmp o_cmp + g_slc o_slc + g_win o_win                      finish
Shapes:  runs of ``run`` tokens every ``hop``; blocks of ``block``.
Cost:    1 / (2 hop) of dense to choose.
Differs from the paper: 1. pooling is the mean and gates are constants, by default the selected
         branch alone: what the paper learns, and where training starts.  2. the own block and the
         two before it and the first are always selected; ``keep`` counts them.
Checked: equals its three softmaxes written out; recall on topics; no row looks ahead,
         tests/claims/test_attention.py and tests/attention/test_policies.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.engines import cpu
from blockwright.attention.far import FarField
from blockwright.attention.heads import align, grouped_scores
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.picking import pick_top
from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import cut, filled_up, tile_status
from blockwright.errors import AttentionError

HELD_ELEMENTS = 2**22
"""Probabilities over runs held at once."""
LOCAL = 2
"""Blocks before the own one that are always selected."""


@dataclass(frozen=True, kw_only=True)
class Nsa(Policy):
    """``keep`` blocks of ``block`` tokens; gates of the three branches; ``shared``: one list per
    key/value head."""

    paper: ClassVar[str] = (
        "Yuan et al., Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse "
        "Attention, ACL 2025"
    )
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    train_safe: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    block: int = 64
    run: int = 32
    hop: int = 16
    keep: int = 16
    shared: bool = True
    selected: float = 1.0
    compressed: float = 0.0
    windowed: float = 0.0
    reach: int = 512
    """Tokens of the window branch."""

    def __post_init__(self) -> None:
        if self.run % self.hop or self.block % self.hop:
            raise AttentionError(
                f"nsa: hop {self.hop} does not divide run {self.run} and block {self.block}"
            )

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Blocks by the probabilities of the runs in them, some tokens at a time."""
        layout, tiles = context.layout, -(-k.shape[2] // self.block)
        means, last = self._runs(k, layout)
        share = self._shares(means.shape[2], tiles, q.device)
        step = max(1, HELD_ELEMENTS // (q.shape[0] * q.shape[1] * max(1, means.shape[2])))
        parts = []
        for start in range(0, q.shape[2], step):
            rows = slice(start, start + step)
            piece = layout.of_queries(rows)
            p_cmp = _compressed(q[:, :, rows], means, last, piece, context.scale)
            p_slc = p_cmp @ share
            if self.shared:
                p_slc = p_slc.unflatten(1, (k.shape[1], -1)).sum(2)
            status = tile_status(piece, 1, self.block)
            forced = _local(status.own) | status.first
            parts.append(pick_top(p_slc, status.visible, forced, self.keep, blocks=(1, self.block)))
        longest = max(part.index.shape[-1] for part in parts)
        index = [F.pad(part.index, (0, longest - part.index.shape[-1])) for part in parts]
        selection = replace(
            parts[0], index=torch.cat(index, 2), count=torch.cat([p.count for p in parts], 2)
        )
        return Choice(selection=selection)

    def finish(
        self, part: Partial, q: Tensor, k: Tensor, v: Tensor, choice: Choice, context: Context
    ) -> Partial:
        """The gated sum of the branches; log-sum-exp is that of the selected one."""
        if (self.selected, self.compressed, self.windowed) == (1.0, 0.0, 0.0):
            return part
        output = self.selected * part.output.float()
        if self.compressed and k.shape[2] >= self.run:
            output = output + self.compressed * self._over_runs(q, k, v, context).output
        if self.windowed:
            near = replace(context.layout, window=self.reach)
            status = tile_status(near, self.block, self.block)
            tiles = Selection.of_mask(status.visible, self.block, self.block)
            window = cpu.attend(q, k, v, tiles, near, scale=context.scale)
            output = output + self.windowed * window.output
        return replace(part, output=output.to(part.output.dtype))

    def _over_runs(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Partial:
        """Attention over the compressed keys and values alone."""
        keys, last = self._runs(k, context.layout)
        values, _ = self._runs(v, context.layout)
        weight = torch.zeros(last.shape, device=q.device).masked_fill(last < 0, -torch.inf)
        field = FarField(key=keys, value=values, log_weight=weight, last_position=last - 1)
        return cpu.attend_far(q, field, context.layout, context.scale)

    def _runs(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Mean of each run of tokens, fp32 [B, h, r, D], and its last position [B or 1, h, r];
        -1 where a run is not all tokens."""
        position = cut(layout.k_position, self.hop)
        hops = self.run // self.hop
        whole = (position >= 0).all(-1)
        sums = filled_up(x, self.hop).unflatten(2, (-1, self.hop)).sum(3, dtype=torch.float32)
        count = sums.shape[2] - hops + 1
        if count < 1:
            return sums[:, :, :0], whole.long()[..., :0]
        means = sum((sums[:, :, i : i + count] for i in range(hops)), start=0.0) / self.run
        full = torch.stack([whole[..., i : i + count] for i in range(hops)]).all(0)
        last = position.amax(-1)[..., hops - 1 :]
        return torch.as_tensor(means), last.masked_fill(~full, -1)

    def _shares(self, runs: int, tiles: int, device: torch.device) -> Tensor:
        """fp32 [r, nk]: the part of each run that lies in each block."""
        start = self.hop * torch.arange(runs, device=device)[:, None]
        block = self.block * torch.arange(tiles, device=device)
        overlap = torch.minimum(start + self.run, block + self.block) - torch.maximum(start, block)
        return overlap.clamp(min=0) / self.run


def _compressed(q: Tensor, means: Tensor, last: Tensor, layout: Layout, scale: float) -> Tensor:
    """fp32 [B, H, n, r]: probabilities over the runs that end at or before each token."""
    scores = grouped_scores(q, means) * scale
    seen = (last[:, :, None, :] >= 0) & (last[:, :, None, :] <= layout.q_position[..., None])
    scores, seen = align(scores, seen)
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)


def _local(own: Tensor) -> Tensor:
    """Own blocks and those just before them."""
    found = own
    for distance in range(1, LOCAL + 1):
        found = found | F.pad(own, (0, distance))[..., distance:]
    return found


POLICY = Nsa
