"""The plain definition: one boolean mask, one softmax.  Memory Nq x Nk; for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockwright.attention.far import FarField
from blockwright.attention.heads import spread
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection | None,
    layout: Layout,
    *,
    scale: float,
    far: Sequence[FarField] = (),
    logit_cap: float | None = None,
) -> Partial:
    """Attention of [B, H, Nq, D] over [B, Hkv, Nk, D], [B, Hkv, Nk, Dv] in slot order.

    ``selection`` None visits everything visible.
    """
    heads = q.shape[1]
    precise = torch.promote_types(q.dtype, torch.float32)
    seen = layout.visible()
    if selection is not None:
        pairs = selection.to_pairs(q.shape[2], k.shape[2])
        seen = spread(seen, heads) & spread(pairs, heads)
    bias = torch.zeros(seen.shape, dtype=precise, device=q.device).masked_fill(~seen, -torch.inf)
    keys, values, biases = [spread(k, heads)], [spread(v, heads)], [spread(bias, heads)]
    for field in far:
        keys.append(spread(field.key, heads).to(k.dtype))
        values.append(spread(field.value, heads).to(v.dtype))
        biases.append(spread(field.bias(layout).to(precise), heads))
    scores = (q.to(precise) * scale) @ torch.cat(keys, 2).to(precise).mT
    if logit_cap is not None:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    rows = [b.expand(q.shape[0], -1, q.shape[2], -1) for b in biases]
    scores = scores + torch.cat(rows, -1)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    output = weights @ torch.cat(values, 2).to(precise)
    return Partial(output=output.to(q.dtype), lse=lse.float())
