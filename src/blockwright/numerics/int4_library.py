"""The native int4 library (``int4_avx512.cpp``): finding, building and calling it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from blockwright.numerics.native import Source, build_library, find_library, source_digest

SOURCE = Source("int4_avx512.cpp", ("fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16"))
TILE, STEP = 32, 16
"""Rows of a tile, inputs of a step."""


class Int4Weight(ctypes.Structure):
    """A packed weight as the library sees it: where its tensors are; somebody else holds them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("words", "scale_zero", "tables")),
        *(
            (name, ctypes.c_int64)
            for name in ("in_features", "out_features", "group", "high", "low", "offset")
        ),
    ]

    @classmethod
    def of(
        cls,
        words: Tensor,
        scale_zero: Tensor,
        out_features: int,
        group: int,
        bits: int,
        offset: bool,
    ) -> Int4Weight:
        """words int32 [tiles, S, words, 32], scale_zero bf16 [tiles, G, 2, 32], contiguous."""
        beside = scale_zero.data_ptr(), tables(bits).data_ptr()
        high, low = (*plane_bits(bits), 0)[:2]
        sizes = STEP * words.shape[1], out_features, group, high, low, int(offset)
        return cls(words.data_ptr(), *beside, *sizes)


@dataclass(frozen=True)
class Int4Kernel:
    """A loaded library's functions on tensors."""

    product_function: Any
    unpack_function: Any

    @classmethod
    def of(cls, library: ctypes.CDLL) -> Int4Kernel:
        """Bind the functions of a loaded library."""
        multiply, unpack = library.blockwright_int4_product, library.blockwright_int4_unpack
        multiply.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        unpack.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4
        multiply.restype = unpack.restype = None
        return cls(multiply, unpack)

    def product(self, x: Tensor, weight: int, out_features: int, tokens: int) -> Tensor:
        """x W^T, bf16 [..., O]; x [..., I] contiguous bf16, ``weight`` the address of one."""
        y = x.new_empty((*x.shape[:-1], out_features))
        self.product_function(weight, x.data_ptr(), y.data_ptr(), tokens, torch.get_num_threads())
        return y

    def unpacked(self, weight: Int4Weight, tiles: slice, dtype: torch.dtype) -> Tensor:
        """W^T [I, rows] of whole tiles, rounded once to ``dtype``: bfloat16 or float32."""
        count = tiles.stop - tiles.start
        W_IR = torch.empty((weight.in_features, count * TILE), dtype=dtype)
        self.unpack_function(
            ctypes.addressof(weight),
            W_IR.data_ptr(),
            dtype == torch.float32,
            tiles.start,
            count,
            torch.get_num_threads(),
        )
        return W_IR


def plane_bits(bits: int) -> tuple[int, ...]:
    """Bits of a code's planes, the high one first."""
    if bits > 4:
        return (4, 4) if bits > 6 else (4, 2)
    return (4,) if bits > 2 else (2,)


@cache
def tables(bits: int) -> Tensor:
    """bf16 [planes, 32]: what a field stands for whose upper bits are anything."""
    index = torch.arange(32)
    high, *low = (index & ((1 << plane) - 1) for plane in plane_bits(bits))
    values = [(high - 8) << (bits - 4), *low] if low else [high - (1 << (bits - 1))]
    return torch.stack(values).to(torch.bfloat16)


def native_int4() -> bool:
    """Whether weights that are prepared now go to this kernel."""
    library = find_library(SOURCE)
    if library is not None:
        _take(library)
    return library is not None


def native_digest() -> str | None:
    """Identifies the kernel in use; None: PyTorch's is."""
    return source_digest(SOURCE) if native_int4() else None


def build_native_int4(prove: Callable[[Int4Kernel], bool]) -> str:
    """Compile and prove; returns the library's path.  Raises ``KernelError`` in one line."""
    return str(build_library(SOURCE, lambda library: prove(Int4Kernel.of(library))))


def kernel_in_use() -> Int4Kernel:
    """The last one taken: what was prepared for one stays on it."""
    return _kernels[-1]


_kernels: list[Int4Kernel] = []


@cache
def _take(library: ctypes.CDLL) -> None:
    """Multiply with this library from now on."""
    _register_operator()
    _kernels.append(Int4Kernel.of(library))


def _product_operator(
    x: Tensor, words: Tensor, scale_zero: Tensor, out_features: int, *rest: Any
) -> Tensor:
    weight = Int4Weight.of(words, scale_zero, out_features, *rest)
    tokens = x.numel() // x.shape[-1]
    return kernel_in_use().product(x, ctypes.addressof(weight), out_features, tokens)


@cache
def _register_operator() -> torch.library.Library:
    """``torch.ops.blockwright.int4_product``, which ``torch.compile`` can trace."""
    library = torch.library.Library("blockwright", "FRAGMENT")
    library.define(
        "int4_product(Tensor x, Tensor words, Tensor scale_zero, int out_features, int group,"
        " int bits, bool offset) -> Tensor"
    )
    library.impl("int4_product", _product_operator, "CPU")
    torch.library.register_fake(
        "blockwright::int4_product",
        lambda x, words, scale_zero, out_features, *_: x.new_empty((*x.shape[:-1], out_features)),
        lib=library,
    )
    return library
