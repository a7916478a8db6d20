"""adam8bit-bnb: the 8-bit Adam of bitsandbytes, where that library is installed.

Paper:   Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization",
         ICLR 2022.
Idea:    The authors' own kernels make a step one pass over a tensor; ``adam8bit`` does the same in
         plain PyTorch, which makes about ten.

Units:   2.03 bytes of states an element, as adam8bit, and two codebooks of 1 KiB a tensor.
Raises:  AdapterError where it is not installed, or cannot step on the model's device: version
         0.50.2 can on a CPU, older ones may not.
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


PROBE_ELEMENTS = 4096
"""The smallest tensor that it keeps states of 8 bits for."""


def bitsandbytes_library(device: str) -> Any:
    """The library, once it has stepped on ``device``."""
    try:
        import bitsandbytes
    except ImportError:
        raise AdapterError(
            f"optimizer {NAME} is made by bitsandbytes, which is not installed; run"
            " `pip install bitsandbytes`, or use adam8bit, which keeps the same states"
        ) from None
    probe = torch.zeros(PROBE_ELEMENTS, device=device, requires_grad=True)
    probe.grad = torch.ones_like(probe)
    try:
        bitsandbytes.optim.Adam8bit([probe], lr=1.0, betas=Adam.betas, eps=EPSILON).step()
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise AdapterError(
            f"optimizer {NAME}: this bitsandbytes cannot step on {device} ({reason}); use adam8bit,"
            " which keeps the same states"
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
