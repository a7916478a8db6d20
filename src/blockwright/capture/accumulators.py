"""Composable statistics of the inputs of one site, gathered batch by batch.

Each accumulator answers to one ``Statistic``; ``update`` takes inputs [tokens, I], ``result`` the
tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.types import Statistic

SAMPLE_ROWS = 512
GRAM_CHUNK_TOKENS = 4096
GRAM_BLOCK = 512
"""Rows of H that are added to at a time."""


class Accumulator(ABC):
    """One statistic over a stream of inputs."""

    statistic: ClassVar[Statistic]

    @abstractmethod
    def update(self, x_TI: Tensor) -> None:
        """Take the next tokens, in any floating-point dtype."""

    @abstractmethod
    def result(self) -> Tensor:
        """The statistic, fp32."""


class Gram(Accumulator):
    """H = E[x x^T], [I, I]: sums in fp32, over chunks so that no large fp32 copy of x is made.

    H is symmetric: only what is on and right of blocks along its diagonal is multiplied.
    """

    statistic = Statistic.INPUT_GRAM

    def __init__(self, features: int) -> None:
        self.total_II = torch.zeros(features, features)
        self.tokens = 0

    def update(self, x_TI: Tensor) -> None:
        for chunk in x_TI.split(GRAM_CHUNK_TOKENS):
            x = chunk.float()
            for start in range(0, x.shape[1], GRAM_BLOCK):
                here = slice(start, start + GRAM_BLOCK)
                self.total_II[here, start:].addmm_(x[:, here].T, x[:, start:])
        self.tokens += len(x_TI)

    def result(self) -> Tensor:
        total_II = self.total_II.triu()
        total_II += total_II.triu(1).T
        return total_II.div_(max(self.tokens, 1))


class AbsMax(Accumulator):
    """max |x| per feature, [I]."""

    statistic = Statistic.INPUT_ABSMAX

    def __init__(self, features: int) -> None:
        self.largest_I = torch.zeros(features)

    def update(self, x_TI: Tensor) -> None:
        torch.maximum(self.largest_I, x_TI.abs().amax(0).float(), out=self.largest_I)

    def result(self) -> Tensor:
        return self.largest_I


class AbsMean(Accumulator):
    """mean |x| per feature, [I]."""

    statistic = Statistic.INPUT_ABSMEAN

    def __init__(self, features: int) -> None:
        self.total_I = torch.zeros(features)
        self.tokens = 0

    def update(self, x_TI: Tensor) -> None:
        self.total_I += x_TI.abs().sum(0, dtype=torch.float32)
        self.tokens += len(x_TI)

    def result(self) -> Tensor:
        return self.total_I / max(self.tokens, 1)


class Samples(Accumulator):
    """A uniform sample of at most ``rows`` inputs, [rows, I], by reservoir sampling with a fixed
    seed.
    """

    statistic = Statistic.INPUT_SAMPLES

    def __init__(self, features: int, rows: int = SAMPLE_ROWS, seed: int = 0) -> None:
        self.rows_SI = torch.zeros(rows, features)
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, x_TI: Tensor) -> None:
        rows = len(self.rows_SI)
        position = self.seen + torch.arange(len(x_TI))
        drawn = torch.rand(len(x_TI), generator=self._generator, dtype=torch.float64)
        slot = torch.where(position < rows, position, (drawn * (position + 1)).long())
        kept = slot < rows
        # A slot drawn twice in one batch keeps the later row, as one by one.
        for target, source in zip(slot[kept].tolist(), x_TI[kept].float(), strict=True):
            self.rows_SI[target] = source
        self.seen += len(x_TI)

    def result(self) -> Tensor:
        return self.rows_SI[: min(self.seen, len(self.rows_SI))]


def accumulators_for(needs: Collection[Statistic], features: int) -> list[Accumulator]:
    """New accumulators for the declared needs (those that come from inputs)."""
    makers = (Gram, AbsMax, AbsMean, Samples)
    return [maker(features) for maker in makers if maker.statistic in needs]
