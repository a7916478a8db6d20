"""What plans are ranked by, as a loss that gives gradients: the same figures as ``quality``."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.evaluate.quality import FinalHidden, next_tokens
from blockwright.stream import Loss


def loss_against(original: FinalHidden) -> Loss:
    """A loss of a model's head outputs, handed over chunk by chunk in order (``head_gradients``);
    its chunks add up to KL(original || model) in nats per token, of encoders to the squared
    relative error of the last hidden state.
    """
    causal = original.stream.skeleton.task == "causal-lm"
    return _divergence(original) if causal else _squared_error(original)


def _divergence(original: FinalHidden) -> Loss:
    counted_T = next_tokens(original.inputs.values) >= 0
    total, others = max(int(counted_T.sum()), 1), original.outputs()
    start = 0

    def loss(logits_TV: Tensor) -> Tensor:
        nonlocal start
        kept_T = counted_T[start : start + len(logits_TV)].to(logits_TV.device)
        start += len(logits_TV)
        log_p = next(others)[kept_T].float().log_softmax(-1)
        log_q = logits_TV[kept_T].float().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum() / total

    return loss


def _squared_error(original: FinalHidden) -> Loss:
    norm = sum(float(h.double().square().sum()) for h in original.outputs())
    others = original.outputs()

    def loss(hidden_BTH: Tensor) -> Tensor:
        error: Tensor = (hidden_BTH.float() - next(others).float()).square().sum()
        return error / max(norm, torch.finfo(torch.float32).tiny)

    return loss
