"""Window: a sliding window of recent tokens and the first few, whatever the text says.

Paper:   G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.
Idea:    softmax needs somewhere to put mass that belongs nowhere, and trained models use the
         first tokens for it.  Keep those and a recent window: streams of any length stay stable.
         Whatever lies between is lost, so it is the floor for retrieval.

Equations -> code
    visible iff k < sink or q - k < window        choose (a layout with both)
Shapes:  one list for all heads.
Cost:    density about (window + sink) / (N / 2); choosing costs nothing.
Differs from the paper: 1. the masking form: keys keep the rotation of their own position, where
         the paper's cache re-rotates them by their place in the cache, which needs keys before
         rotation.
Checked: far below the oracle on planted data, tests/claims/test_attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from blockwright.attention.policy import Choice, Context, Knob, Policy
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """``window`` recent tokens, the query included, and the first ``sink``."""

    paper: ClassVar[str] = (
        "Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024"
    )
    knob: ClassVar[Knob | None] = Knob(name="window", least=1, most=None, whole=True)
    train_safe: ClassVar[bool] = True
    decode: ClassVar[bool] = True
    window: int = 1024
    sink: int = 4
    query_block: int = 64
    key_block: int = 64

    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """All tiles with a visible pair under the narrower rule."""
        given = context.layout.window
        window = self.window if given is None else min(given, self.window)
        sink = self.sink if given is None else min(context.layout.sink, self.sink)
        layout = replace(context.layout, window=window, sink=sink)
        status = tile_status(layout, self.query_block, self.key_block)
        selection = Selection.of_mask(status.visible, self.query_block, self.key_block)
        return Choice(selection=selection, layout=layout)


POLICY = Window
