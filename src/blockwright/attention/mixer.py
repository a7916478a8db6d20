"""The interface of sequence mixers: what stands in attention's place at a cost linear in tokens.

A mixer reads streams, tensors [B, H, N, ...] with tokens at the third place (q, k, v, gates; or u),
and has three forms that agree to rounding:

    parallel   the whole sequence at once, as the formula stands: plain, for tests and short ones
    chunk      some tokens behind a state; products inside the chunk, one update of the state
    step       one token behind a state, what decoding does

Shapes:  B batch, H heads, N tokens, C tokens of a chunk, D width of q and k, V width of v.
Units:   states are fp32 (complex64) whatever the streams are; outputs have the dtype of the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

StateT = TypeVar("StateT")
Streams = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class SequenceMixer(ABC, Generic[StateT]):
    """A replacement of attention; hyperparameters are fields."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""

    @abstractmethod
    def start(self, *streams: Tensor) -> StateT:
        """The state before the first token of such streams."""

    @abstractmethod
    def parallel(self, *streams: Tensor) -> Tensor:
        """Outputs [B, H, N, V] of a whole sequence."""

    @abstractmethod
    def chunk(self, state: StateT, *streams: Tensor) -> tuple[Tensor, StateT]:
        """Outputs of the tokens of one chunk, and the state behind them."""

    @abstractmethod
    def step(self, state: StateT, *streams: Tensor) -> tuple[Tensor, StateT]:
        """``chunk`` of one token."""

    def kernel(self, state: StateT, *streams: Tensor) -> tuple[Tensor, StateT] | None:
        """``forward`` by a GPU kernel; None where there is none for such streams."""
        return None

    def forward(
        self, *streams: Tensor, size: int, state: StateT | None = None
    ) -> tuple[Tensor, StateT]:
        """A sequence of any length in chunks of ``size`` tokens, a kernel's own where there is one;
        outputs, and the last state."""
        state = self.start(*streams) if state is None else state
        if (done := self.kernel(state, *streams)) is not None:
            return done
        outputs = []
        for part in zip(*(stream.split(size, dim=2) for stream in streams), strict=True):
            output, state = self.chunk(state, *part)
            outputs.append(output)
        return torch.cat(outputs, dim=2), state


def grouped(x_BHNV: Tensor, heads: int) -> Tensor:
    """[B, H, N, V] as [B, heads, H / heads, N, V]: query heads beside the head they share."""
    B, H, N, V = x_BHNV.shape
    if H % heads:
        raise ValueError(f"{H} query heads are no multiple of {heads} heads of keys")
    return x_BHNV.reshape(B, heads, H // heads, N, V)


def ungrouped(x_BKGNV: Tensor) -> Tensor:
    """Inverse of ``grouped``."""
    return x_BKGNV.flatten(1, 2)
