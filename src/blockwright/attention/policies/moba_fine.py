"""Fine MoBA (FlashMoBA): MoBA with small blocks, and a schedule that makes them fast.

Paper:   G. Xiao et al., "Optimizing Mixture of Block Attention", 2025.
Idea:    the router must tell one good block from many noisy ones.  With delta between the mean
         affinities of a relevant key and of others, a block of B keys of width D shows
         SNR = delta sqrt(D / (2 B)): halving the block at equal density gains a factor of
         sqrt(2), and related keys that lie together gain linearly.  Small blocks are slow unless
         each key block gathers the queries that chose it, multiplies once and scatters back.

Equations -> code
    SNR = delta sqrt(D / (2 B)); wrong order with probability Phi(-SNR)     signal_to_noise
    lists per token -> lists per block, gather, product, scatter            engines/by_key.py
Shapes:  as in moba.
Cost:    1 / (2 block) of dense to route.
Differs from the paper: 1. the short convolution over keys belongs to training and is not here.
         2. the gate is held for some tokens at a time, not streamed.  3. the name: transformers
         takes any attention implementation with "flash" in its name for its own kernels.
Checked: pair order against simulation, recall as blocks shrink, tests/claims/test_attention.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.routing import route


@dataclass(frozen=True, kw_only=True)
class FineMoba(Policy):
    """``keep`` blocks of ``block`` tokens per token, its own included."""

    paper: ClassVar[str] = "Xiao et al., Optimizing Mixture of Block Attention, 2025"
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    train_safe: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    block: int = 128
    keep: int = 8

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """As MoBA."""
        return Choice(selection=route(q, k, context.layout, self.block, self.keep))


def signal_to_noise(delta: float, width: int, block: int) -> float:
    """How many standard deviations the right block's score stands above a random one's."""
    return delta * math.sqrt(width / (2 * block))


POLICY = FineMoba
