"""mfac: natural-gradient steps by the last gradients alone.

Paper:   Frantar, Kurtic, Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
         Information", NeurIPS 2021: its optimizer.
Idea:    The empirical Fisher matrix of the last M gradients is a multiple of the identity but for M
         directions, so that its inverse times a vector costs M products.  Memory is M copies of
         what is trained: for adapters and scales, not for whole models.

Equations -> code     F = lambda I + 1/M sum_k g_k g_k^T
    v = b v + (1 - b) F^-1 g,  w -= rate v / rms(v)     step
Shapes:  D numbers trained, M gradients.   Units: memory 4 (M + 1) D bytes.
Differs from the paper:
    1. lambda is a share of the mean squared gradient, and steps are scaled to the rate's size: one
       rate serves this optimizer and Adam, whatever lambda is.
    2. One Cholesky in place of the recursion, see ``numerics/empirical_fisher``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from blockwright.numerics.empirical_fisher import EmpiricalFisher
from blockwright.tuning.optimizers.first_order import HealOptimizer
from blockwright.tuning.trained import Trained

GRADIENTS = 32
BETA = 0.9
DAMPING = 1.0
"""lambda over the mean squared gradient."""


class Mfac(HealOptimizer):
    """A ring of gradients, and a momentum."""

    def __init__(self, trained: Mapping[str, Trained], *, gradients: int = GRADIENTS) -> None:
        super().__init__(trained)
        self._sizes = [item.offset.numel() for item in self.trained.values()]
        device = next((item.offset.device for item in self.trained.values()), None)
        self._ring_MD = torch.zeros(gradients, sum(self._sizes), device=device)
        self._momentum_D = torch.zeros(sum(self._sizes), device=device)
        self._steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        g_D = torch.cat([_gradient(item) for item in self.trained.values()])
        self._ring_MD[self._steps % len(self._ring_MD)] = g_D
        self._steps += 1
        seen_MD = self._ring_MD[: min(self._steps, len(self._ring_MD))]
        ridge = max(DAMPING * seen_MD.square().mean().item(), torch.finfo(torch.float32).tiny)
        natural_D = EmpiricalFisher.of(seen_MD, ridge).product(g_D[None])[0]
        self._momentum_D = BETA * self._momentum_D + (1 - BETA) * natural_D
        size = self._momentum_D.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        direction_D = self._momentum_D / size
        for item, part in zip(self.trained.values(), direction_D.split(self._sizes), strict=True):
            item.offset.sub_(rate * item.pace * part.view(item.offset.shape))

    def tensors(self) -> dict[str, Tensor]:
        return {
            "steps": torch.tensor([self._steps]),
            "ring": self._ring_MD,
            "momentum": self._momentum_D,
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._steps = int(tensors["steps"])
        device = self._ring_MD.device
        self._ring_MD = tensors["ring"].to(device, copy=True)
        self._momentum_D = tensors["momentum"].to(device, copy=True)


def _gradient(item: Trained) -> Tensor:
    """Flat, fp32."""
    gradient = item.offset.grad
    if gradient is None:
        return torch.zeros(item.offset.numel(), device=item.offset.device)
    return gradient.detach().float().flatten()
