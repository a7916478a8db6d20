"""One tensor that is trained: how far a step moves it, and what it is rounded to.

    value = round(start + unit * offset)        the rounding passes gradients through (STE)

Adam moves every element of ``offset`` by about the learning rate, whatever its gradient.  The unit
turns that into a change relative to the tensor's own size, so that one rate serves scales, norms
and biases of any model:

    unit = max(|start|, FLOOR * rms(start))

Elements close to zero move relative to the whole tensor; a tensor of zeros stays as it is.  What
is trained is always what will be loaded: the value is rounded to the dtype it is stored in.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

FLOOR = 0.1
"""Least unit of an element, as a fraction of the tensor's root mean square."""


class Trained(Protocol):
    """What ``tune`` trains."""

    offset: Tensor
    """The leaf that the optimizer moves."""
    pace: float
    """Its learning rate, as a multiple of that of other tensors."""

    def value(self) -> Tensor:
        """The current value as it would be stored, in fp32, with a gradient to ``offset``."""

    def stored(self) -> Tensor:
        """The current value as it is stored."""


class TrainedTensor:
    """A floating-point tensor with its trained offset (fp32, in units of its own size)."""

    def __init__(self, start: Tensor, *, dtype: torch.dtype | None = None) -> None:
        """``start`` is not modified; ``dtype``: of the result (that of ``start`` by default)."""
        self.pace = 1.0
        self.dtype = start.dtype if dtype is None else dtype
        self.start = start.detach().float().clone()
        rms = self.start.square().mean().sqrt()
        self.unit = self.start.abs().clamp(min=FLOOR * rms.item())
        self.offset = torch.zeros_like(self.start, requires_grad=True)

    def value(self) -> Tensor:
        """The current value as it would be stored, in fp32, with a gradient to ``offset``."""
        exact = self.start + self.unit * self.offset
        rounded = exact.detach().to(self.dtype).float()
        return exact + (rounded - exact).detach()

    def stored(self) -> Tensor:
        """The current value in the dtype it is stored in."""
        return (self.start + self.unit * self.offset).detach().to(self.dtype)


class FreeTensor:
    """A parameter of an adapter, trained in place: it begins at zero or at random, where no step is
    relative to it.
    """

    def __init__(self, parameter: Tensor, *, pace: float = 1.0) -> None:
        """``pace``: change of an element per step at a learning rate of 1."""
        self.pace, self.offset = pace, parameter
        self.offset.requires_grad_()

    def value(self) -> Tensor:
        """The parameter itself."""
        return self.offset

    def stored(self) -> Tensor:
        """A copy."""
        return self.offset.detach().clone()
