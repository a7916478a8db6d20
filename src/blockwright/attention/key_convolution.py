"""A short causal convolution over keys, for models that are trained with routed attention.

Paper:   G. Xiao et al., "Optimizing Mixture of Block Attention", 2025 (FlashMoBA).
Idea:    a router sees a block through its mean key, where one relevant key is lost among many and
         m related ones that lie together are m times as visible.  Trained with each key mixed into
         its neighbours, keys come to lie so.  Zero weights change nothing, so a pretrained model
         starts as it was.

Equations -> code
    k'_t = k_t + SiLU(sum_l w_l * k_{t-l})        forward
Shapes:  keys [B, N, C] as projected, before rotation, C = Hkv D; w [C, W], W taps of each channel.
Checked: zero weights, causality, tokens one by one, tests/attention/test_key_convolution.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockwright.errors import AttentionError


class KeyConvolution(nn.Module):
    """Depthwise, ``width`` taps, the newest first; the result serves routing and attention."""

    def __init__(self, channels: int, width: int = 3) -> None:
        super().__init__()
        if width < 1:
            raise AttentionError(f"key convolution: got {width} taps, needs 1 or more")
        self.weight = nn.Parameter(torch.zeros(channels, width))

    def forward(self, keys: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """k' [B, N, C], and the last W - 1 keys [B, W - 1, C], which the call for the next tokens
        takes as ``before``; None: the text begins here."""
        channels, width = self.weight.shape
        if before is None:
            before = keys.new_zeros(len(keys), width - 1, channels)
        known = torch.cat([before, keys], 1)
        windows = known.unfold(1, width, 1)  # [B, N, C, W], the newest last
        mixed = (windows * self.weight.flip(-1)).sum(-1)
        return keys + F.silu(mixed), known[:, keys.shape[1] :]
