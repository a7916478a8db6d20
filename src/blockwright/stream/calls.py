"""How the model calls its blocks, found out by running its own forward with stand-ins for them.

Every architecture prepares masks, position embeddings and per-layer arguments in its own way.
Instead of knowing them, the model's forward is run with each block replaced by a stand-in that
records its arguments and passes the hidden states through.  Two runs need only the stem and the
head in memory:

    stem  the stand-ins record; the first one's hidden states are the input of block 0
    head  the last stand-in answers with given hidden states; the model returns its logits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn


class StemDone(Exception):  # noqa: N818 - a signal, not an error
    """Raised by the stand-in behind which nothing is wanted."""


class Stop(Enum):
    """The stand-in that ends a forward."""

    NONE = auto()
    FIRST = auto()
    LAST = auto()


@dataclass(frozen=True)
class BlockCall:
    """Arguments of one call of one block, hidden states left out."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_name: str = ""
    """Name under which the hidden states are passed; empty when positional."""

    def outputs(self, block: nn.Module, hidden: Tensor) -> Any:
        """Call the block; whatever it returns."""
        if self.by_name:
            return block(*self.args, **{self.by_name: hidden}, **self.kwargs)
        return block(hidden, *self.args, **self.kwargs)

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block; its hidden states [B, T, H]."""
        outputs = self.outputs(block, hidden)
        return outputs if isinstance(outputs, Tensor) else outputs[0]


@dataclass
class Tape:
    """What the stand-ins record and answer during one forward."""

    stop: Stop = Stop.NONE
    extra_outputs: tuple[Any, ...] | None = None
    """None when blocks return a tensor; else what follows it in their tuple."""
    answer: Tensor | None = None
    """Hidden states that the last stand-in returns, if set."""
    first_hidden: Tensor | None = None
    calls: list[BlockCall] = field(default_factory=list)

    def record(self, index: int, last: bool, hidden: Tensor, call: BlockCall) -> Any:
        if index == 0:
            self.first_hidden, self.calls = hidden, []
        self.calls.append(shared_call(call, self.calls[-1] if self.calls else None))
        if self.stop is Stop.FIRST or (self.stop is Stop.LAST and last):
            raise StemDone
        if last and self.answer is not None:
            hidden = self.answer
        return hidden if self.extra_outputs is None else (hidden, *self.extra_outputs)


class BlockStandIn(nn.Module):
    """Looks like a block to the model's forward (attributes come from it) but computes nothing."""

    def __init__(self, block: nn.Module, index: int, last: bool, tape: Tape) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        self._index, self._last, self._tape = index, last, tape

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            call = BlockCall(args[1:], kwargs)
            return self._tape.record(self._index, self._last, args[0], call)
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        call = BlockCall(args, rest, by_name="hidden_states")
        return self._tape.record(self._index, self._last, kwargs["hidden_states"], call)


def stand_ins(blocks: nn.ModuleList, tape: Tape) -> nn.ModuleList:
    """A stand-in for every block."""
    last = len(blocks) - 1
    return nn.ModuleList(BlockStandIn(block, i, i == last, tape) for i, block in enumerate(blocks))


def shared_call(call: BlockCall, previous: BlockCall | None) -> BlockCall:
    """The call, with equal tensors of a previous call in place of copies."""
    if previous is None:
        return call
    args = tuple(
        shared_value(value, previous.args[i] if i < len(previous.args) else None)
        for i, value in enumerate(call.args)
    )
    kwargs = {
        key: shared_value(value, previous.kwargs.get(key)) for key, value in call.kwargs.items()
    }
    return BlockCall(args, kwargs, call.by_name)


def shared_value(value: Any, previous: Any) -> Any:
    if isinstance(value, tuple) and isinstance(previous, tuple) and len(value) == len(previous):
        return tuple(map(shared_value, value, previous))
    if (
        isinstance(value, Tensor)
        and isinstance(previous, Tensor)
        and value.shape == previous.shape
        and value.dtype == previous.dtype
        and torch.equal(value, previous)
    ):
        return previous
    return value
