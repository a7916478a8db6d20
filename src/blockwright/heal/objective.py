"""What healing minimises: the distance of the healed model's outputs from the original's.

Paper:   Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, at
         temperature 1.

    language models   KL(p || q) = sum_v p_v (log p_v - log q_v), mean over positions
    others            squared relative error of the last hidden states
"""

from __future__ import annotations

from torch import Tensor

from blockwright.tuning.loop import relative_error


def distance(outputs: Tensor, target: Tensor, *, logits: bool) -> Tensor:
    """Nats per position between logits [B, T, V], or the relative error of hidden states."""
    if not logits:
        return relative_error(outputs, target)
    log_q = outputs.float().log_softmax(-1)
    log_p = target.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
