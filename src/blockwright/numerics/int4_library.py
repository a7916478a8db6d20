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
TILE, UNIT = 32, 8
"""Rows of a tile, inputs of a unit."""


@dataclass(frozen=True)
class Int4Kernel:
    """A loaded library's functions on tensors."""

    product_function: Any
    unpack_function: Any

    @classmethod
    def of(cls, library: ctypes.CDLL) -> Int4Kernel:
        """Bind the functions of a loaded library."""
        multiply, unpack = library.blockwright_int4_product, library.blockwright_int4_unpack
        multiply.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 7
        unpack.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 8
        multiply.restype = unpack.restype = None
        return cls(multiply, unpack)

    def product(
        self,
        x_TI: Tensor,
        units: Tensor,
        scale_zero: Tensor,
        out_features: int,
        group: int,
        bits: int,
        offset: bool,
    ) -> Tensor:
        """x W^T, bf16 [T, O]; x contiguous bf16."""
        tokens, in_features = x_TI.shape
        y_TO = x_TI.new_empty((tokens, out_features))
        sums = x_TI.new_empty(tokens * (in_features // group), dtype=torch.float32)
        self.product_function(
            x_TI.data_ptr(),
            sums.data_ptr(),
            units.data_ptr(),
            scale_zero.data_ptr(),
            tables(bits).data_ptr(),
            y_TO.data_ptr(),
            tokens,
            in_features,
            out_features,
            group,
            plane_count(bits),
            offset,
            min(torch.get_num_threads(), len(units)),
        )
        return y_TO

    def unpacked(
        self,
        units: Tensor,
        scale_zero: Tensor,
        tiles: slice,
        group: int,
        bits: int,
        offset: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """W^T [I, rows] of whole tiles, rounded once to ``dtype``: bfloat16 or float32."""
        in_features, count = UNIT * units.shape[1], tiles.stop - tiles.start
        W_IR = torch.empty((in_features, count * TILE), dtype=dtype)
        self.unpack_function(
            units.data_ptr(),
            scale_zero.data_ptr(),
            tables(bits).data_ptr(),
            W_IR.data_ptr(),
            dtype == torch.float32,
            in_features,
            group,
            plane_count(bits),
            offset,
            tiles.start,
            count,
            min(torch.get_num_threads(), count),
        )
        return W_IR


def plane_count(bits: int) -> int:
    """Nibbles of a code."""
    return 2 if bits > 4 else 1


@cache
def tables(bits: int) -> Tensor:
    """bf16 [planes, 32]: what a nibble stands for, twice over."""
    nibble = torch.arange(16)
    values = [(nibble - 8) << (bits - 4), nibble] if bits > 4 else [nibble - (1 << (bits - 1))]
    return torch.stack(values).to(torch.bfloat16).repeat(1, 2).contiguous()


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


@cache
def _register_operator() -> torch.library.Library:
    """``torch.ops.blockwright.int4_product``, which ``torch.compile`` can trace."""
    library = torch.library.Library("blockwright", "FRAGMENT")
    library.define(
        "int4_product(Tensor x, Tensor units, Tensor scale_zero, int out_features, int group,"
        " int bits, bool offset) -> Tensor"
    )
    library.impl("int4_product", lambda *given: kernel_in_use().product(*given), "CPU")
    torch.library.register_fake(
        "blockwright::int4_product",
        lambda x, units, scale_zero, out_features, *_: x.new_empty((x.shape[0], out_features)),
        lib=library,
    )
    return library
