"""Attention over blocks: a policy chooses which key tiles each query tile visits.

    from blockwright.attention import attention

    output = attention(q, k, v, policy="xattention")

``policies/`` holds one file per paper, ``engines/`` multiplies what was chosen, ``calling`` joins
the two.
"""

from __future__ import annotations

from blockwright.attention.calling import Attended, attend, attention
from blockwright.attention.layout import Layout
from blockwright.attention.policy import Choice, Context, Policy
from blockwright.attention.selection import Selection

__all__ = [
    "Attended",
    "Choice",
    "Context",
    "Layout",
    "Policy",
    "Selection",
    "attend",
    "attention",
]
