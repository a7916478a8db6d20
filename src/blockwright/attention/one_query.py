"""transformers' ``sdpa`` with one difference: on a CPU, a step of one token reads keys once.

Idea:    Where heads share keys, PyTorch's CPU kernel (``enable_gqa``) reads the keys of a group
         once for every head of it.  With a single query the heads of a group may stand as rows of
         one block of queries: the same sums, with keys and values read once.
Shapes:  B texts, Nq queries, H heads, D of a head, Dv of a value.
Differs: possibly in the last bits, as the kernel may add in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "blockwright_sdpa"
"""Of the attention implementation."""


def use_grouped_queries(model: Any) -> bool:
    """Have a model that attends with ``sdpa`` and shares keys between heads read them once.

    Returns whether it does; others stay as they are.
    """
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    if not any(getattr(module, "num_key_value_groups", 1) > 1 for module in model.modules()):
        return False
    AttentionInterface.register(NAME, sdpa_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def sdpa_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: output [B, Nq, H, Dv], no attention weights."""
    groups = query.shape[1] // key.shape[1]
    shared = attention_mask is None or attention_mask.shape[1] == 1
    alone = query.shape[2] == 1 and shared and query.device.type == "cpu"
    special = any(options.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if not alone or special or groups == 1:
        given = {"dropout": dropout, "scaling": scaling, **options}
        done: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **given
        )
        return done
    grouped = query.reshape(query.shape[0], key.shape[1], groups, query.shape[3])
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(query.shape[0], 1, query.shape[1], value.shape[3]), None
