"""Layers that keep nothing for their backward: their inputs are computed again from their outputs.

Paper:   Pendse, Thangarasa, Chiley, Holmdahl, Hestness, DeCoste, "Memory Efficient 3D U-Net with
         Reversible Mobile Inverted Bottlenecks", 2021 (coupling of two halves); Chen, Zhang, Zhao,
         Xiong, "Invertible Diffusion Models for Compressed Sensing", 2024 (retrofit of bodies that
         were trained without it).
Idea:    If a layer can be inverted, the last outputs are all that has to be kept: going backwards,
         every layer gives its inputs back and is run again with gradients.  Memory does not grow
         with depth; the price is one more forward.

Equations -> code
    y1 = x1 + F(x2), y2 = x2 + G(y1);  x2 = y2 - G(y1), x1 = y1 - F(x2)             Coupling
    y1 = (1 - v) body(x1) + v x2, y2 = x1;  x1 = y2, x2 = (y1 - (1 - v) body(x1)) / v   Retrofit
Shapes:  two streams [..., H].
Differs from the paper: v of a retrofit is kept within 0.5 to 0.95, because every layer multiplies
         rounding by 1 / v; nothing random is replayed, so bodies with dropout are not for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
LEAST_MIX, LARGEST_MIX = 0.5, 0.95


class Reversible(nn.Module, ABC):
    """A layer of two streams that can be undone."""

    @abstractmethod
    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        """Outputs of the two streams."""

    @abstractmethod
    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        """The inputs that gave these outputs."""


class Coupling(Reversible):
    """Two residual functions, each of the other's stream."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        y1 = x1 + self.first(x2)
        return y1, x2 + self.second(y1)

    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        x2 = y2 - self.second(y1)
        return y1 - self.first(x2), x2


class Retrofit(Reversible):
    """A trained body, its residual included, mixed with what stood before it."""

    def __init__(self, body: nn.Module, mix: float = 0.5) -> None:
        super().__init__()
        self.body = body
        self.mix = nn.Parameter(torch.tensor(mix))

    @property
    def v(self) -> Tensor:
        """The mix, within its range."""
        return self.mix.clamp(LEAST_MIX, LARGEST_MIX)

    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        return (1 - self.v) * self.body(x1) + self.v * x2, x1

    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        return y2, (y1 - (1 - self.v) * self.body(y2)) / self.v


def run_reversible(layers: Sequence[Reversible], x1: Tensor, x2: Tensor) -> Pair:
    """All layers, of which nothing is kept but the last outputs."""
    parameters = [p for layer in layers for p in layer.parameters()]
    y: Pair = _Chain.apply(tuple(layers), x1, x2, *parameters)  # type: ignore[no-untyped-call]
    return y


class _Chain(torch.autograd.Function):
    """Forward without a graph; backward layer by layer, each run again."""

    @staticmethod
    def forward(
        ctx: Any, layers: tuple[Reversible, ...], x1: Tensor, x2: Tensor, *parameters: Tensor
    ) -> Pair:
        with torch.no_grad():
            for layer in layers:
                x1, x2 = layer(x1, x2)
        ctx.layers = layers
        ctx.save_for_backward(x1.detach(), x2.detach())
        return x1, x2

    @staticmethod
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
        y1, y2 = ctx.saved_tensors
        found: dict[int, Tensor] = {}
        order = [p for layer in ctx.layers for p in layer.parameters()]
        for layer in reversed(ctx.layers):
            with torch.no_grad():
                x1, x2 = layer.inverse(y1, y2)
            with torch.enable_grad():
                leaves = [x1.detach().requires_grad_(), x2.detach().requires_grad_()]
                own = [p for p in layer.parameters() if p.requires_grad]
                outputs = layer(*leaves)
            gradients = torch.autograd.grad(outputs, [*leaves, *own], (d1, d2), allow_unused=True)
            d1, d2 = (
                torch.zeros_like(leaf) if g is None else g
                for leaf, g in zip(leaves, gradients[:2], strict=True)
            )
            for parameter, gradient in zip(own, gradients[2:], strict=True):
                if gradient is not None:
                    before = found.get(id(parameter))
                    found[id(parameter)] = gradient if before is None else before + gradient
            y1, y2 = x1, x2
        return None, d1, d2, *(_once(found, parameter) for parameter in order)


def _once(found: dict[int, Tensor], parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter, at its first place among all layers."""
    return found.pop(id(parameter), None)
