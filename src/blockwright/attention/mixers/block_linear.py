"""Block linear attention (SANA-Video): a ReLU kernel whose sums are all that a block leaves behind.

Paper:   Chen, Zhao, Yu et al., "SANA-Video: Efficient Video Generation with Block Linear Diffusion
         Transformer", 2025.  Code: NVlabs/Sana.
Idea:    Sums over keys are additive: blocks of frames are generated one after another behind two
         sums that do not grow, with the whole past in view.  Inside a block everything sees
         everything; a block that is denoised in several steps is added once, after the last.

Equations -> code
    phi = relu;  S = sum v phi(k)_r^T,  z = sum phi(k)                        commit
    o_i = S phi(q)_r,i / (z phi(q)_i + tiny), rotated copies in the numerator only   attend
Shapes:  q [B, H, N, D], k [B, K, N, D], v [B, K, N, V], and q and k rotated after the ReLU (given
         by the caller, for positions are the model's), [B, H, N, D] and [B, K, N, D].
Cost:    4 B H N D V, state D V + D per head of keys.
Differs: heads that share keys share the sums (GQA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.mixer import SequenceMixer, grouped, ungrouped

TINY = 1e-6
"""Added to the denominator: all ReLUs of a query can be 0."""


@dataclass(frozen=True)
class Sums:
    """What the past left."""

    S: Tensor
    """[B, K, D, V]: rotated keys by values."""
    z: Tensor
    """[B, K, D, 1]: keys, never negative."""


@dataclass(frozen=True, kw_only=True)
class BlockLinear(SequenceMixer[Sums]):
    """Linear attention over blocks of tokens: bidirectional inside, causal between them.

    Streams: phi(q), phi(k), v, and the rotated copies of phi(q) and phi(k).
    """

    paper: ClassVar[str] = "Chen et al., SANA-Video, 2025"

    block: int
    """Tokens that see each other."""

    def start(self, *streams: Tensor) -> Sums:
        _, k, v, _, _ = streams
        D, V = k.shape[-1], v.shape[-1]
        zeros = torch.zeros(*k.shape[:2], D, V + 1, device=k.device)
        return Sums(zeros[..., :V], zeros[..., V:])

    def parallel(self, *streams: Tensor) -> Tensor:
        q, k, v, q_rotated, k_rotated = (stream.float() for stream in streams)
        blocks = torch.arange(k.shape[2], device=k.device) // self.block
        seen = blocks[:, None] >= blocks
        heads = k.shape[1]
        weights = grouped(q_rotated, heads) @ k_rotated.mT[:, :, None] * seen
        total = (grouped(q, heads) @ k.mT[:, :, None] * seen).sum(-1, keepdim=True)
        return ungrouped(weights @ v[:, :, None] / (total + TINY)).to(streams[0].dtype)

    def chunk(self, state: Sums, *streams: Tensor) -> tuple[Tensor, Sums]:
        """One block (or several whole ones)."""
        outputs = []
        for part in zip(*(stream.split(self.block, dim=2) for stream in streams), strict=True):
            state = self.commit(state, *part)
            outputs.append(self.attend(state, part[0], part[3]))
        return torch.cat(outputs, dim=2), state

    def step(self, state: Sums, *streams: Tensor) -> tuple[Tensor, Sums]:
        """One token of a model whose blocks are single tokens."""
        if self.block != 1:
            raise ValueError(f"a block has {self.block} tokens: give it whole, to chunk")
        return self.chunk(state, *streams)

    def denoise(self, state: Sums, *streams: Tensor) -> Tensor:
        """Outputs of a block that is not finished: the state stays as it was."""
        return self.chunk(state, *streams)[0]

    def commit(self, state: Sums, *streams: Tensor) -> Sums:
        """The state with a block added."""
        _, k, v, _, k_rotated = (stream.float() for stream in streams)
        return Sums(state.S + k_rotated.mT @ v, state.z + k.sum(2)[..., None])

    def attend(self, state: Sums, q: Tensor, q_rotated: Tensor) -> Tensor:
        """Outputs of queries that see all that is in the state."""
        heads = state.S.shape[1]
        weighted = grouped(q_rotated.float(), heads) @ state.S[:, :, None]
        total = grouped(q.float(), heads) @ state.z[:, :, None]
        return ungrouped(weighted / (total + TINY)).to(q.dtype)
