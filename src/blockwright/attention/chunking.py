"""The trained parts of ChunkLLM: where chunks end, and which past chunks a token wants.

Paper:   H. Ouyang et al., "ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs
         Inference", 2025.
Shapes:  hidden [B, N, W] behind the first block; q [B, H, N, D], k [B, Hkv, N, D]; C chunks, each
         stood for by its last token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockwright.attention.heads import grouped_scores

LONGEST = 256
"""A chunk ends after so many tokens, whatever the detector says."""


class BoundaryDetector(nn.Module):
    """Whether a token ends a chunk, from its hidden state."""

    def __init__(self, width: int, inner: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, N]."""
        logits: Tensor = self.layers(hidden)
        return logits[..., 0]

    def loss(self, hidden: Tensor, ends: Tensor) -> Tensor:
        """Cross-entropy against bool [B, N]; the rare ends weigh as much as all others."""
        logits, wanted = self(hidden), ends.to(hidden.dtype)
        weight = (1 - wanted).sum() / wanted.sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)

    @torch.no_grad()
    def ends(self, hidden: Tensor, longest: int = LONGEST) -> Tensor:
        """bool [B, N]: p > 0.5, and every ``longest`` tokens without one."""
        return at_least_every(self(hidden) > 0, longest)


class ChunkScorer(nn.Module):
    """f_q and f_k: queries and keys of all heads of a token in few dimensions."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, width: int = 64) -> None:
        super().__init__()
        self.query = _adapter(heads * head_dim, width)
        self.key = _adapter(kv_heads * head_dim, width)
        self.width = width

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores [B, n, C] of q [B, H, n, D] for chunks whose last keys are k [B, Hkv, C, D]."""
        q_low, k_low = (
            adapter(x.transpose(1, 2).flatten(2).float())
            for adapter, x in ((self.query, q), (self.key, k))
        )
        scores: Tensor = q_low @ k_low.mT / self.width**0.5
        return scores


def own_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores [B, n, C] where no scorer is trained: q . k of the last tokens, mean over heads."""
    return grouped_scores(q, k).mean(1)


def teacher_mass(q: Tensor, k: Tensor, chunk_of: Tensor, scale: float) -> Tensor:
    """fp32 [B, n, C]: attention of the last n tokens summed over each chunk that is over before
    the token's own, mean over heads, each row's sum 1 (0 where there is none)."""
    tokens, queries = k.shape[2], q.shape[2]
    row = torch.arange(tokens - queries, tokens, device=q.device)
    scores = grouped_scores(q, k) * scale
    later = torch.arange(tokens, device=q.device) > row[:, None]
    P = torch.softmax(scores.masked_fill(later, -torch.inf), -1).mean(1)
    chunks = int(chunk_of.max()) + 1
    members = F.one_hot(chunk_of, chunks).to(P.dtype).expand(len(P), -1, -1)
    own = chunk_of[..., tokens - queries :, None]
    past = torch.arange(chunks, device=q.device) < own
    mass = (P @ members) * past
    return mass / mass.sum(-1, keepdim=True).clamp(min=1e-30)


def distillation_loss(scores: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(teacher || student) over the rows that have past chunks; [B, n, C] each."""
    past = teacher > 0
    student = scores.masked_fill(~past, -torch.inf).log_softmax(-1).masked_fill(~past, 0.0)
    rows = past.any(-1)
    kl = (teacher * (teacher.clamp(min=1e-30).log() - student)).sum(-1)
    return kl[rows].mean()


def at_least_every(ends: Tensor, longest: int) -> Tensor:
    """bool [B, N] with a further end wherever ``longest`` tokens have none."""
    place = torch.arange(ends.shape[-1], device=ends.device).expand_as(ends)
    before = torch.where(ends, place, -1).cummax(-1).values
    last = F.pad(before[..., :-1], (1, 0), value=-1)
    return ends | ((place - last) % longest == 0)


def _adapter(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner))
