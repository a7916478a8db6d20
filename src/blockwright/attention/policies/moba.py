"""MoBA: every token goes to the blocks whose mean key it likes most, and to its own.

Paper:   E. Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025.
Idea:    key blocks are experts and the mean key is the router.  There are no parameters, so a
         layer can change between dense and routed, and the choice never looks ahead: it can be
         trained through.  It is weak on narrow diagonals, which a mean cannot see.

Equations -> code
    g[i, t] = q_i . mean(k of t), past blocks only     routing.route
    own block and the best keep - 1                    pick_top
Shapes:  g [B, H, N, nk].
Cost:    1 / (2 block) of dense; density about 2 keep block / N.
Differs from the paper: nothing known; the paper's two parts, own block and routed ones, are one
         list here, with the same result.
Checked: equals dense attention under the explicit mask; no row depends on later tokens; recall,
         tests/attention/test_policies.py and tests/claims/test_attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.routing import route


@dataclass(frozen=True, kw_only=True)
class Moba(Policy):
    """``keep`` blocks of ``block`` tokens per token, its own included."""

    paper: ClassVar[str] = "Lu et al., MoBA: Mixture of Block Attention for Long-Context LLMs, 2025"
    knob: ClassVar[Knob | None] = Knob(name="keep", least=1, most=None, whole=True)
    train_safe: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    block: int = 512
    keep: int = 4

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Router scores in fp32, some tokens at a time."""
        return Choice(selection=route(q, k, context.layout, self.block, self.keep))


POLICY = Moba
