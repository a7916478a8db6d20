"""What training descends: the cross-entropy of the next token, and what children learn from."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def logits_of(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V], fp32, computed under bfloat16 autocast."""
    with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16):
        logits: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits.float()


def next_token_losses(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Cross-entropy of every token but the first of each sequence, nats."""
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
    )


def token_losses(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """``next_token_losses`` of a model."""
    return next_token_losses(logits_of(model, tokens_BT), tokens_BT)


def divergence(teacher_BTV: Tensor, logits_BTV: Tensor) -> Tensor:
    """Mean KL(teacher || model) over all positions, nats; the teacher gets no gradient."""
    log_p = teacher_BTV.detach().log_softmax(-1)
    log_q = logits_BTV.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
