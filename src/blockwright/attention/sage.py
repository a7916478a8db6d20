"""Sage: 4-bit or 8-bit queries and keys, 8-bit floats for probabilities and values.

Paper:   J. Zhang et al., "SageAttention2: Efficient Attention with Thorough Outlier Smoothing and
         Per-thread INT4 Quantization", ICML 2025.
Idea:    outliers ruin low-bit attention, and they are mostly one constant per channel.  Softmax
         ignores a constant per row, and rows of P sum to one, so means are taken out of K, of each
         query tile and of V at almost no cost.

Equations -> code
    K' = K - mean(K); Q' = Q - mean(Q of the tile)           sage_product
    S = Q^ K^^T + mean(Q) K'^T                               sage_product
    lse += scale * Q mean(K)                                 sage_product
    O = fp8(448 P) fp8(V - mean V) / sum P + mean V          sage_product
Shapes:  q in groups of 32 rows, k of 64; one scale each.
Cost:    O(N D) besides the products.
Differs from the paper: 1. a simulation with the paper's rounding: it shows the error, and is not
         faster, because there is no INT4 product here.  2. means are over the keys of one product,
         not the whole text: exact either way.
Checked: errors with and without smoothing, algebra with rounding off,
         tests/claims/test_attention_video.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import AttentionError

QUERY_GROUP, KEY_GROUP, FP8_MOST = 32, 64, 448.0


@dataclass(frozen=True, kw_only=True)
class Sage:
    """``bits`` of queries and keys, 4 or 8 (0: no rounding at all); which means are taken out."""

    paper: ClassVar[str] = (
        "Zhang et al., SageAttention2: Efficient Attention with Thorough Outlier Smoothing and "
        "Per-thread INT4 Quantization, ICML 2025"
    )
    bits: int = 4
    smooth_k: bool = True
    smooth_q: bool = True
    smooth_v: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (0, 4, 8):
            raise AttentionError(f"sage: got bits {self.bits}, allowed: 4, 8, or 0 for no rounding")

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """A ``Product`` in few bits."""
        return sage_product(q, k, v, bias, scale, self)


PRECISIONS = {"native": None, "sage4": Sage(bits=4), "sage8": Sage(bits=8)}
"""By name."""


def sage_product(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, settings: Sage
) -> tuple[Tensor, Tensor]:
    """One query tile after another; see ``products.Product``."""
    Q, K, V = q.float(), k.float(), v.float()
    k_mean = K.mean(1, keepdim=True) if settings.smooth_k else torch.zeros_like(K[:, :1])
    q_mean = Q.mean(1, keepdim=True) if settings.smooth_q else torch.zeros_like(Q[:, :1])
    v_mean = V.mean(1, keepdim=True) if settings.smooth_v else torch.zeros_like(V[:, :1])
    K, V = K - k_mean, V - v_mean
    rounded_Q = round_groups(Q - q_mean, QUERY_GROUP, settings.bits)
    S = scale * (rounded_Q @ round_groups(K, KEY_GROUP, settings.bits).mT + q_mean @ K.mT)
    S = S if bias is None else S + bias.float()
    peak = S.amax(-1, keepdim=True)
    P = torch.exp(S - peak.masked_fill(peak == -torch.inf, 0.0))
    total = P.sum(-1, keepdim=True)
    lse = (peak + total.log())[..., 0] + scale * (Q @ k_mean.mT)[..., 0]
    if settings.bits:
        P = (P * FP8_MOST).to(torch.float8_e4m3fn).float() / FP8_MOST
        step = V.abs().amax(1, keepdim=True).clamp(min=1e-30) / FP8_MOST
        V = (V / step).to(torch.float8_e4m3fn).float() * step
    return (P @ V / total.clamp(min=1e-30) + v_mean).to(q.dtype), lse


def round_groups(x: Tensor, rows: int, bits: int) -> Tensor:
    """[R, n, D] rounded to symmetric integers with one scale per group of rows (0 bits: as is)."""
    if not bits:
        return x
    most = 2 ** (bits - 1) - 1
    groups = F.pad(x, (0, 0, 0, -x.shape[1] % rows)).unflatten(1, (-1, rows))
    step = groups.abs().amax((2, 3), keepdim=True).clamp(min=1e-30) / most
    rounded: Tensor = ((groups / step).round() * step).flatten(1, 2)[:, : x.shape[1]]
    return rounded


POLICY = Sage
