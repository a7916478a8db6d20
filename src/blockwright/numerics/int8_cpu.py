"""PyTorch's int8 CPU kernel: signed codes with one scale per row and no zero point.

``_weight_int8pack_mm`` computes scale_o sum_j x_j code_oj, reading one byte per weight.  It reads
inputs in steps of 16, and beyond the end of its tensors where they do not come out even.

Shapes:  O out features, I in features, T tokens.
Cost:    8 bits per weight resident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KERNEL_STEP = 16
"""The kernel needs a multiple of this many inputs (torch 2.13, found by running it)."""
CHUNK_WEIGHTS = 1 << 21
"""Weights widened at a time where tokens are many: 4 MiB of bf16."""


def int8_matrix_bytes(shape: tuple[int, int]) -> int:
    """``nbytes`` of an ``Int8Matrix`` of [O, I], without making it."""
    return shape[0] * shape[1] + torch.bfloat16.itemsize * shape[0]


@dataclass(frozen=True)
class Int8Matrix:
    """A weight [O, I] with symmetric rows."""

    signed: Tensor
    """int8 [O, I]: code - zero point"""
    row_scale: Tensor
    """bf16 [O]"""
    center: int
    """The zero point of all codes, 2^(bits - 1)."""

    @classmethod
    def pack(cls, codes_OI: Tensor, scale_O: Tensor, *, bits: int) -> Int8Matrix:
        center = 1 << (bits - 1)
        signed = codes_OI.contiguous().sub(center).view(torch.int8)  # bytes wrap, and wrap back
        return cls(signed, scale_O.to(torch.bfloat16, copy=True), center)

    @property
    def many_tokens(self) -> int:
        """From this many tokens on, ``dense_product`` is the faster one (measured, AVX-512)."""
        return 20 if self.signed.shape[1] % KERNEL_STEP == 0 else 0

    @property
    def nbytes(self) -> int:
        return self.signed.numel() + 2 * self.row_scale.numel()

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O] on the kernel; x [..., I] contiguous bf16.

        Raises ``ValueError`` for inputs % 16.
        """
        if self.signed.shape[1] % KERNEL_STEP:
            raise ValueError(f"the int8 kernel cannot take {self.signed.shape[1]} inputs")
        x_TI = x.reshape(-1, self.signed.shape[1])
        y_TO = torch._weight_int8pack_mm(x_TI, self.signed, self.row_scale)
        return y_TO.reshape(*x.shape[:-1], len(self.signed))

    def dense_product(self, x_TI: Tensor) -> Tensor:
        """The same product with the weight widened once, in chunks of rows, to the dtype of x."""
        y_TO = x_TI.new_empty((x_TI.shape[0], self.signed.shape[0]))
        for rows, W_RI in self._chunks(x_TI.dtype):
            torch.mm(x_TI, W_RI.t(), out=y_TO[:, rows])
        return y_TO

    def dequantize(self) -> Tensor:
        """The weight [O, I], fp32."""
        return self.signed.float().mul_(self.row_scale.float().unsqueeze(1))

    def codes(self) -> Tensor:
        """The codes [O, I] that were packed, uint8."""
        return self.signed.view(torch.uint8).add(self.center)

    def rows(self, index: Tensor) -> Tensor:
        """Rows [len(index), I] of the weight, fp32."""
        return self.signed[index].float().mul_(self.row_scale[index].float().unsqueeze(1))

    def scale(self) -> Tensor:
        """bf16 [O, 1] (a view): the scales that were packed."""
        return self.row_scale.unsqueeze(1)

    def zero_point(self) -> Tensor:
        """fp32 [O, 1]"""
        return torch.full_like(self.scale(), self.center, dtype=torch.float32)

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        exact = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        scale_O = self.row_scale.to(exact).unsqueeze(1)
        step = max(1, CHUNK_WEIGHTS // max(self.signed.shape[1], 1))
        for start in range(0, self.signed.shape[0], step):
            rows = slice(start, min(start + step, self.signed.shape[0]))
            yield rows, self.signed[rows].to(exact).mul_(scale_O[rows]).to(dtype)
