"""2:4 on CUDA: torch's semi-structured matrices, where a probe multiplies right.

The library behind it (cuSPARSELt or CUTLASS), its shapes and dtypes differ between builds, so they
are tried rather than known: a weight that cannot be compressed, that does not come back bit for
bit, or whose product is wrong, is multiplied densely.

Checked: not run on a GPU; on a CPU ``of`` gives None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CAPABILITY = (8, 0)
"""The first CUDA compute capability with sparse tensor cores."""
PROBE_TOKENS = 64
TOLERANCE = 2e-2
"""Largest |y_sparse - y_dense| / max |y_dense| of the probe: 16-bit inputs, other summation."""
TOKEN_STEP = 8
"""The product takes a multiple of this many tokens; others are padded with zeros."""


@dataclass(frozen=True)
class SemiStructuredMatrix:
    """A weight [O, I] with at most 2 of 4 consecutive inputs."""

    compressed: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, W_OI: Tensor, n: int, m: int) -> SemiStructuredMatrix | None:
        """The compressed weight; None where this machine cannot multiply it, or does so wrongly."""
        takes = W_OI.dtype in (torch.bfloat16, torch.float16) and (n, m) == (2, 4)
        if not takes or W_OI.device.type != "cuda":
            return None
        if torch.cuda.get_device_capability(W_OI.device) < CAPABILITY:
            return None
        try:
            compressed = torch.sparse.to_sparse_semi_structured(W_OI)
            made = cls(compressed, W_OI.dtype)
            return made if made._is_right(W_OI) else None
        except (RuntimeError, NotImplementedError):  # what torch raises for shapes and builds
            return None

    @property
    def nbytes(self) -> int:
        """Half the values, and two bits of place for each: 9/16 of the dense bytes."""
        rows, columns = self.compressed.shape
        return rows * columns * self.dtype.itemsize * 9 // 16

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O]; densely where x is of another dtype."""
        if x.dtype != self.dtype:
            return torch.nn.functional.linear(x, self.dense().to(x.dtype))
        x_TI = x.reshape(-1, x.shape[-1])
        tokens = len(x_TI)
        padded = torch.nn.functional.pad(x_TI, (0, 0, 0, -tokens % TOKEN_STEP)).contiguous()
        y_TO = torch.nn.functional.linear(padded, self.compressed)[:tokens]
        return y_TO.reshape(*x.shape[:-1], y_TO.shape[-1])

    def dense(self) -> Tensor:
        """W [O, I]."""
        return self.compressed.to_dense()

    def _is_right(self, W_OI: Tensor) -> bool:
        if not torch.equal(self.dense(), W_OI):
            return False
        generator = torch.Generator(device=W_OI.device).manual_seed(0)
        shape = (PROBE_TOKENS, W_OI.shape[1])
        x = torch.randn(shape, generator=generator, device=W_OI.device).to(self.dtype)
        exact = x @ W_OI.t()
        return bool((self.product(x) - exact).abs().max() <= TOLERANCE * exact.abs().max())
