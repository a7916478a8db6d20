"""Adam and SGD with momentum, over named leaves, their moments in fp32 or in 8 bits.

Paper:   Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015; 8 bits: see moments.

Equations -> code
    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2                    Adam._move
    w -= rate  m / (1 - b1^t)  /  (sqrt(v / (1 - b2^t)) + eps)
    m = b m + g,  w -= rate m                                          Sgd._move
Memory:  Adam 8 bytes an element, 2.03 in 8 bits; SGD half of that.
Differs from the paper: no weight decay: what is trained here is a change, or a scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.tuning.optimizers.moments import (
    LEAST_ELEMENTS,
    DynamicMoment,
    Moment,
    PlainMoment,
)
from blockwright.tuning.trained import Trained

EPSILON = 1e-8


class HealOptimizer(ABC):
    """Moves the offsets of what is trained; gradients are in their ``grad``."""

    def __init__(self, trained: Mapping[str, Trained]) -> None:
        self.trained = dict(trained)

    @abstractmethod
    def step(self, rate: float) -> None:
        """One step; ``rate`` is multiplied by every item's pace."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All states, by name."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of ``tensors``."""

    def state_bytes(self) -> int:
        """Bytes kept between steps."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def clear(self) -> None:
        """Forget the gradients."""
        for item in self.trained.values():
            item.offset.grad = None


class MomentOptimizer(HealOptimizer):
    """One with moments per tensor."""

    moments: ClassVar[Mapping[str, bool]]
    """Name -> whether it is signed."""

    def __init__(self, trained: Mapping[str, Trained], *, eight_bit: bool = False) -> None:
        super().__init__(trained)
        self._steps = 0
        self._moments: dict[str, dict[str, Moment]] = {
            name: {
                moment: _moment(item.offset, signed, eight_bit=eight_bit)
                for moment, signed in self.moments.items()
            }
            for name, item in self.trained.items()
        }

    @abstractmethod
    def _move(self, gradient: Tensor, moments: Mapping[str, Moment]) -> Tensor:
        """Bring moments up to date; the direction of the step, for a rate of 1."""

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self._steps += 1
        for name, item in self.trained.items():
            if item.offset.grad is not None:
                direction = self._move(item.offset.grad.float(), self._moments[name])
                item.offset.sub_(rate * item.pace * direction)

    def tensors(self) -> dict[str, Tensor]:
        found = {"steps": torch.tensor([self._steps])}
        for name, moments in self._moments.items():
            for which, moment in moments.items():
                found |= {f"{which}.{part}/{name}": t for part, t in moment.tensors().items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._steps = int(tensors["steps"])
        for name, moments in self._moments.items():
            for which, moment in moments.items():
                parts = moment.tensors()
                moment.load({part: tensors[f"{which}.{part}/{name}"] for part in parts})


class Adam(MomentOptimizer):
    """First and second moments."""

    moments: ClassVar[Mapping[str, bool]] = {"first": True, "second": False}
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)

    def _move(self, gradient: Tensor, moments: Mapping[str, Moment]) -> Tensor:
        b1, b2 = self.betas
        m = b1 * moments["first"].value() + (1 - b1) * gradient
        v = b2 * moments["second"].value() + (1 - b2) * gradient.square()
        moments["first"].store(m)
        moments["second"].store(v)
        size = (v / (1 - b2**self._steps)).sqrt_().add_(EPSILON)
        return m / (1 - b1**self._steps) / size


class Sgd(MomentOptimizer):
    """Momentum."""

    moments: ClassVar[Mapping[str, bool]] = {"first": True}
    beta: ClassVar[float] = 0.9

    def _move(self, gradient: Tensor, moments: Mapping[str, Moment]) -> Tensor:
        m = self.beta * moments["first"].value() + gradient
        moments["first"].store(m)
        return m


def _moment(like: Tensor, signed: bool, *, eight_bit: bool) -> Moment:
    if eight_bit and like.numel() >= LEAST_ELEMENTS:
        return DynamicMoment(like, signed=signed)
    return PlainMoment(like)
