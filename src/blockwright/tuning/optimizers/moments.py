"""Moments of an optimizer: kept in fp32, or as dynamic 8-bit codes with a scale per block.

Paper:   Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization",
         ICLR 2022.
Idea:    Moments span many decades and have outliers.  A codebook that is dense near zero and near
         one keeps small ones, and a scale per block keeps an outlier to its own block.

Equations -> code     blocks of 256 elements, a = max |block|, code = nearest entry to t / a
Units:   bytes per element = 1 + 4 / 256, in place of 4.
Differs from the paper:
    1. Blocks of 256 (paper: 2048; the authors' library: 256).
    2. A positive second moment never takes the code of zero but the least positive one: its element
       would otherwise move by m / epsilon.
    3. Tensors below 4096 elements stay in fp32, as in the authors' library; embeddings do not, and
       no norm is put behind them.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.numerics.codebooks import dynamic_codebook

BLOCK = 256
LEAST_ELEMENTS = 4096
"""Smaller tensors stay in fp32."""


class Moment(Protocol):
    """One moment of one tensor."""

    def value(self) -> Tensor:
        """fp32, in the tensor's shape."""

    def store(self, value: Tensor) -> None:
        """Keep a value."""

    def tensors(self) -> dict[str, Tensor]:
        """What is kept."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""


class PlainMoment:
    """fp32."""

    def __init__(self, like: Tensor) -> None:
        self._value = torch.zeros_like(like, dtype=torch.float32)

    def value(self) -> Tensor:
        return self._value

    def store(self, value: Tensor) -> None:
        self._value = value

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self._value}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self._value = tensors["value"].to(self._value.device)


class DynamicMoment:
    """8-bit codes and a scale per block."""

    def __init__(self, like: Tensor, *, signed: bool) -> None:
        self._shape, self._count = like.shape, like.numel()
        self._codebook = dynamic_codebook(signed=signed)
        self._signed = signed
        self.store(torch.zeros_like(like, dtype=torch.float32))

    def value(self) -> Tensor:
        blocks = self._codebook.decode(self._codes) * self._scales[:, None]
        return blocks.flatten()[: self._count].view(self._shape)

    def store(self, value: Tensor) -> None:
        flat = value.detach().flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        self._scales = blocks.abs().amax(1)
        scaled = blocks / torch.where(self._scales > 0, self._scales, 1.0)[:, None]
        codes = self._codebook.encode(scaled)
        if not self._signed:
            zero, least = self._codebook.encode(scaled.new_tensor([0.0])), self._least
            codes = torch.where((codes == zero) & (blocks > 0), least.to(codes.device), codes)
        self._codes = codes

    @property
    def _least(self) -> Tensor:
        """The code of the least positive value."""
        least = min(value for value in self._codebook.values if value > 0)
        return self._codebook.encode(torch.tensor([least]))

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self._codes, "scales": self._scales}

    def load(self, tensors: dict[str, Tensor]) -> None:
        device = self._codes.device
        self._codes, self._scales = (tensors[name].to(device) for name in ("codes", "scales"))
