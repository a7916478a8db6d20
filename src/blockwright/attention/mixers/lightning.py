"""Lightning Attention-2: causal linear attention with a fixed decay per head.

Paper:   Qin, Sun, Li, Shen, Sun, Zhong, "Lightning Attention-2: A Free Lunch for Handling Unlimited
         Sequence Lengths in Large Language Models", 2024.  Code: OpenNLPLab/lightning-attention.
Idea:    Without a softmax the products can be taken in any order.  The running sum over the past is
         a matrix product inside a chunk and one D x V state between chunks, so that time is linear
         in tokens and memory is constant.

Equations -> code
    o_i = sum_{j <= i} lambda^(i-j) (q_i k_j) v_j                          parallel
    chunk: O = (Q K^T * M) V + diag(lambda^(i+1)) Q S,  M_ij = lambda^(i-j)   chunk
           S <- lambda^C S + (diag(lambda^(C-1-i)) K)^T V
Shapes:  q [B, H, N, D], k [B, K, N, D], v [B, K, N, V] (feature maps applied), K divides H.
Cost:    2 B H N (C D + 2 D V) products, state D V per head of keys.
Differs: 1. Heads that share keys share the decay and the state (GQA).
         2. No custom backward: autograd goes through the chunks, at the same order of cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention import gpu_kernels
from blockwright.attention.mixer import SequenceMixer, grouped, ungrouped

LAST_LAYER = 1e-5
"""What is left of the slope in the last layer, so that its decay is not 1."""


def slopes(heads: int, *, layer: int = 0, layers: int = 1) -> tuple[float, ...]:
    """a_h: 2^(-8 h / H) for powers of two, the two nearest interleaved otherwise; less with depth.

    lambda_h = exp(-a_h).
    """
    power = 2 ** math.floor(math.log2(heads))
    found = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    depth = 1 - layer / max(layers - 1, 1) + LAST_LAYER
    return tuple(depth * slope for slope in (found + between)[:heads])


@dataclass(frozen=True, kw_only=True)
class Lightning(SequenceMixer[Tensor]):
    """Linear attention with decay; the state is [B, K, D, V]."""

    paper: ClassVar[str] = "Qin et al., Lightning Attention-2, 2024"

    slopes: tuple[float, ...]
    """a_h of every head of keys, 0 or more; 0 keeps everything."""

    def start(self, *streams: Tensor) -> Tensor:
        _, k, v = streams
        return torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], device=k.device)

    def kernel(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor] | None:
        """flash-linear-attention's for one gate per head, which is -a_h here."""
        if gpu_kernels.missing(*streams[:2]):
            return None
        q, k, v = streams
        fall = -torch.tensor(self.slopes, device=k.device)[:, None].expand(*k.shape[:3])
        return gpu_kernels.run(gpu_kernels.operation("simple_gla"), q, k, v, fall, state)

    def parallel(self, *streams: Tensor) -> Tensor:
        return self.chunk(self.start(*streams), *streams)[0]

    def chunk(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (stream.float() for stream in streams)
        q, size = grouped(q, k.shape[1]), k.shape[2]
        a_K11 = torch.tensor(self.slopes, device=k.device)[:, None, None]
        place = torch.arange(size, device=k.device)
        apart_CC = place[:, None] - place
        M_KCC = torch.exp(-a_K11 * apart_CC).where(apart_CC >= 0, 0.0)
        inside = (q @ k.mT[:, :, None] * M_KCC[:, None]) @ v[:, :, None]
        before = torch.exp(-a_K11 * (place[:, None] + 1))[:, None] * (q @ state[:, :, None])
        left = torch.exp(-a_K11 * (size - 1 - place[:, None]))
        state = torch.exp(-a_K11 * size) * state + (left * k).mT @ v
        return ungrouped(inside + before).to(streams[0].dtype), state

    def step(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (stream.float() for stream in streams)
        a_K11 = torch.tensor(self.slopes, device=k.device)[:, None, None]
        state = torch.exp(-a_K11) * state + k.mT @ v
        output = grouped(q, k.shape[1]) @ state[:, :, None]
        return ungrouped(output).to(streams[0].dtype), state
