"""Dense attention of many small problems at once, with the log-sum-exp of every row."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Product(Protocol):
    """R problems of L queries and M keys: [R, L, D], [R, M, D], [R, M, Dv] and a bias [R, L, M]
    added to the scores -> outputs [R, L, Dv] and log-sum-exp fp32 [R, L].

    Rows whose bias is -inf everywhere have undefined results: the caller clears them.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]: ...


def product(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The fused kernel where it applies, the plain one elsewhere."""
    if fusable(q, k, v):
        return fused_product(q, k, v, bias, scale)
    return plain_product(q, k, v, bias, scale)


def fusable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the CPU's fused kernel takes these tensors; it has no gradient for log-sum-exp."""
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return (
        q.device.type == "cpu"
        and q.dtype in FUSED_DTYPES
        and q.shape[-1] == v.shape[-1]
        and min(*q.shape, *k.shape) > 0  # the kernel divides by zero on nothing
        and not training
    )


def fused_product(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's own CPU kernel: the one behind its public function, which hides log-sum-exp."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[:, None],
        k[:, None],
        v[:, None],
        attn_mask=None if bias is None else bias[:, None],
        scale=scale,
    )
    return output[:, 0], lse[:, 0]


def plain_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    logit_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Two products and a softmax, scores in fp32 (fp64 for fp64)."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(q.to(precise) * scale, k.to(precise).mT)
    if logit_cap is not None:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    if bias is not None:
        scores = scores + bias.to(precise)
    peak = scores.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    lse = (peak + total.log())[..., 0]
    output = torch.bmm(weights, v.to(precise)) / total.masked_fill(total == 0, 1.0)
    return output.to(q.dtype), lse.float()
