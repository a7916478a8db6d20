"""adam8bit-bnb: the 8-bit Adam of bitsandbytes, where that library is installed.

Paper:   Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization",
         ICLR 2022.
Idea:    The authors' own kernels make a step one pass over a tensor; ``adam8bit`` does the same in
         plain PyTorch, which makes about ten, on any device.

Units:   2.03 bytes of states an element, as adam8bit.
Raises:  AdapterError where it is not installed, or for a model on a CPU, for which it has no
         optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from blockwright.errors import AdapterError
from blockwright.tuning.optimizers.first_order import EPSILON, Adam, HealOptimizer
from blockwright.tuning.trained import Trained

NAME = "adam8bit-bnb"


def bitsandbytes_library(device: str) -> Any:
    """The library, for tensors on ``device``."""
    if torch.device(device).type == "cpu":
        raise AdapterError(
            f"optimizer {NAME}: bitsandbytes has no optimizers for a CPU; use adam8bit, which keeps"
            " the same states"
        )
    try:
        import bitsandbytes
    except ImportError:
        raise AdapterError(
            f"optimizer {NAME} is made by bitsandbytes, which is not installed; run"
            " `pip install bitsandbytes`, or use adam8bit, which keeps the same states"
        ) from None
    return bitsandbytes


class BitsAndBytesAdam(HealOptimizer):
    """Its Adam over the offsets, each with its own rate."""

    def __init__(self, trained: Mapping[str, Trained]) -> None:
        super().__init__(trained)
        device = next((item.offset.device.type for item in self.trained.values()), "cpu")
        groups = [{"params": [i.offset], "pace": i.pace} for i in self.trained.values()]
        optimizers = bitsandbytes_library(device).optim
        self._adam = optimizers.Adam8bit(groups, lr=1.0, betas=Adam.betas, eps=EPSILON)

    def step(self, rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = rate * group["pace"]
        self._adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """What the library keeps of every tensor; nothing before the first step."""
        return {
            f"{part}/{name}": torch.as_tensor(value)
            for name, item in self.trained.items()
            for part, value in self._adam.state.get(item.offset, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._adam.state.clear()
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            offset = self.trained[name].offset
            held = int(value) if part == "step" else value.to(offset.device)
            self._adam.state[offset][part] = held
