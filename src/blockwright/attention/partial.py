"""Attention over part of the keys, and how parts become one.

Paper: T. Dao et al., "FlashAttention-2", ICLR 2024, section 3.1 (rescaling by log-sum-exp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Attention normalised over the pairs that it covers."""

    output: Tensor
    """[B, H, Nq, Dv]; zero where a row covers nothing."""
    lse: Tensor
    """fp32 [B, H, Nq]: log of the sum of exponentials of the scores; -inf where it covers
    nothing."""


def merge(parts: Sequence[Partial]) -> Partial:
    """Attention over the union of disjoint sets of pairs."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.logsumexp(torch.stack([part.lse for part in parts]), dim=0)
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    output = torch.zeros_like(parts[0].output, dtype=torch.float32)
    for part in parts:
        output += torch.exp(part.lse - safe)[..., None] * part.output
    return Partial(output=output.to(parts[0].output.dtype), lse=lse)


def with_sink(part: Partial, logit: Tensor) -> Partial:
    """With one more key of value zero and score ``logit`` [H] that every row sees."""
    score = logit.to(part.lse)[None, :, None].expand_as(part.lse)
    lse = torch.logaddexp(part.lse, score)
    share = torch.exp(part.lse - lse)[..., None]
    return Partial(output=(part.output * share).to(part.output.dtype), lse=lse)
