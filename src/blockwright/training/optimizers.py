"""AdamW as the trainer takes it, its moments in fp32 or in 8 bits.

Paper:   Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; 8 bits: see
         ``tuning.optimizers.moments``.
Units:   8 bytes of moments per parameter, 2.03 in 8 bits; tensors below 4096 elements stay in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockwright.training.settings import BETAS, TrainingSettings
from blockwright.tuning import FreeTensor
from blockwright.tuning.optimizers import Adam


def new_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over all parameters; matrices decay, vectors do not."""
    parameters = list(model.parameters())
    groups = [
        {
            "params": [p for p in parameters if (p.dim() == 2) == decays],
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    if settings.eight_bit:
        return EightBitAdamW(groups, settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)


class _TrainerAdam(Adam):
    """Adam of the trainer's betas."""

    betas = BETAS


class EightBitAdamW(torch.optim.Optimizer):
    """AdamW whose moments are 8-bit codes; every group has the rate of the first."""

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        super().__init__(groups, {"lr": learning_rate, "weight_decay": 0.0})
        parameters = [p for group in self.param_groups for p in group["params"]]
        trained = {str(place): FreeTensor(p) for place, p in enumerate(parameters)}
        self.adam = _TrainerAdam(trained, eight_bit=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """w -= rate (decay w + m / (sqrt(v) + eps))"""
        rate: float = self.param_groups[0]["lr"]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - rate * group["weight_decay"])
        self.adam.step(rate)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Codes, scales and the number of steps."""
        return dict(self.adam.tensors())

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Inverse of ``state_dict``."""
        self.adam.load(state_dict)
