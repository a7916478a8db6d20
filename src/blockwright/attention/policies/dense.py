"""Dense: every visible tile, the measure of all other policies.

Paper:   T. Dao, "FlashAttention-2", ICLR 2024.
Idea:    exact attention tile by tile with a running maximum and sum; nothing is left out.  The
         engine runs PyTorch's fused kernel where causality is the only rule.
Cost:    4 B H A D FLOP for A visible pairs; memory O(N D).
Checked: equals the explicit softmax to 1e-5, tests/attention/test_engines.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.attention.policy import Choice, Context, Policy


@dataclass(frozen=True, kw_only=True)
class Dense(Policy):
    """No hyperparameters."""

    paper: ClassVar[str] = "Dao, FlashAttention-2, ICLR 2024"
    train_safe: ClassVar[bool] = True
    decode: ClassVar[bool] = True

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Everything."""
        return Choice(selection=None)


POLICY = Dense
