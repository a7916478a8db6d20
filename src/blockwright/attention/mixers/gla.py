"""GLA: linear attention whose every key channel forgets at a rate that the input decides.

Paper:   Yang, Wang, Shen, Panda, Kim, "Gated Linear Attention Transformers with Hardware-Efficient
         Training", ICML 2024.  Code: fla-org/flash-linear-attention.
Idea:    The gates' product from j to i splits into a factor of i and one of j, so that a chunk is a
         matrix product again; but exp(-b_j) overflows.  Relative to the first row of a later
         sub-chunk both factors are at most 1; only 16 x 16 pieces on the diagonal are evaluated
         channel by channel.

Equations -> code
    Eq. (3)  S_t = diag(alpha_t) S_{t-1} + k_t^T v_t,  o_t = q_t S_t          step
    Sec. 4   b = cumulative log alpha;  O += (Q * exp(b)) S                   chunk
             A_ij = sum_d q_id k_jd exp(b_id - b_jd), i >= j;  O += A V       _scores
             S <- diag(exp(b_C)) S + (K * exp(b_C - b))^T V
Shapes:  q [B, H, N, D] (scaled), k and log alpha [B, K, N, D], v [B, K, N, V], K divides H.
Cost:    2 B H N (C (D + V) + 2 D V) products and 16 D elementwise per row.
Differs: heads that share keys share gates and state (GQA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention import gpu_kernels
from blockwright.attention.mixer import SequenceMixer, grouped, ungrouped

PIECE = 16
"""Tokens of a sub-chunk."""
TEMPERATURE = 16.0
"""Gates are sigmoids to the power of 1 over this: memory is long at the start."""


def log_gates(x: Tensor) -> Tensor:
    """log alpha of what a projection gives: logsigmoid(x) / 16."""
    return F.logsigmoid(x.float()) / TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class Gla(SequenceMixer[Tensor]):
    """Gated linear attention on q, k, v and log gates; the state is [B, K, D, V]."""

    paper: ClassVar[str] = "Yang et al., Gated Linear Attention, ICML 2024"

    def start(self, *streams: Tensor) -> Tensor:
        _, k, v, _ = streams
        return torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], device=k.device)

    def kernel(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor] | None:
        """flash-linear-attention's."""
        if gpu_kernels.missing(*streams[:2]):
            return None
        q, k, v, log_alpha = streams
        return gpu_kernels.run(gpu_kernels.operation("gla"), q, k, v, log_alpha.float(), state)

    def parallel(self, *streams: Tensor) -> Tensor:
        q, k, v, log_alpha = (stream.float() for stream in streams)
        b, N = log_alpha.cumsum(2), k.shape[2]
        apart = (b[:, :, :, None] - b[:, :, None]).masked_fill(_later(N, k)[..., None], -torch.inf)
        scores = torch.einsum("bkgid,bkjd,bkijd->bkgij", grouped(q, k.shape[1]), k, apart.exp())
        return ungrouped(scores @ v[:, :, None]).to(streams[0].dtype)

    def chunk(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, log_alpha = (stream.float() for stream in streams)
        q, b = grouped(q, k.shape[1]), log_alpha.cumsum(2)
        before = (q * b.exp()[:, :, None]) @ state[:, :, None]
        inside = _scores(q, k, b) @ v[:, :, None]
        last = b[:, :, -1:]
        state = last.exp().mT * state + (k * (last - b).exp()).mT @ v
        return ungrouped(inside + before).to(streams[0].dtype), state

    def step(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, log_alpha = (stream.float() for stream in streams)
        state = log_alpha.exp().mT * state + k.mT @ v
        output = grouped(q, k.shape[1]) @ state[:, :, None]
        return ungrouped(output).to(streams[0].dtype), state


def _later(tokens: int, like: Tensor) -> Tensor:
    """bool [N, N]: above the diagonal."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).triu(1)


def _scores(q: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """A [B, K, G, C, C] of a chunk, piece by piece; no factor is above 1."""
    size = k.shape[2]
    A = q.new_zeros(*q.shape[:3], size, size)
    for start in range(0, size, PIECE):
        here = slice(start, min(start + PIECE, size))
        q_here, b_here = q[:, :, :, here], b[:, :, here]
        reference = b[:, :, start : start + 1]
        ahead = (b_here - reference).exp()[:, :, None] * q_here
        behind = k[:, :, :start] * (reference - b[:, :, :start]).exp()
        A[:, :, :, here, :start] = ahead @ behind.mT[:, :, None]
        apart = b_here[:, :, :, None] - b_here[:, :, None]
        apart = apart.masked_fill(_later(apart.shape[2], k)[..., None], -torch.inf)
        A[:, :, :, here, here] = torch.einsum(
            "bkgid,bkjd,bkijd->bkgij", q_here, k[:, :, here], apart.exp()
        )
    return A
