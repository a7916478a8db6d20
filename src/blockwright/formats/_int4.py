"""Formats whose codes the int4 kernel multiplies: a plane of 4 bits, two above; see the kernels."""

from __future__ import annotations

import torch

from blockwright.formats._grouped import GroupedFormat, GroupedLinear
from blockwright.numerics.int4_cpu import (
    Int4Matrix,
    int4_matrix_bytes,
    kernel_group,
    tile_layout,
)
from blockwright.numerics.int4_library import native_digest, native_int4, plane_bits
from blockwright.numerics.int4_native import NativeInt4Matrix, native_int4_bytes
from blockwright.types import FormatLimits


def int4_matrix() -> type[Int4Matrix] | type[NativeInt4Matrix]:
    """What weights are prepared as now: for the native kernel where it was built."""
    return NativeInt4Matrix if native_int4() else Int4Matrix


def int4_kernel() -> str | None:
    """The kernel of one plane in use; None: there is none."""
    if native_int4():
        return "native int4"
    return "int4" if tile_layout() is not None else None


def native_kernel() -> str | None:
    """Digest of the native kernel in use, for what was timed with it; None: PyTorch's is."""
    return native_digest()


class Int4Format(GroupedFormat):
    """A grouped format in the int4 kernel's layout on CPU."""

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size or 1,
            packed_on_cpu=int4_kernel() is not None,
            resident_bits=self._kernel_bits,
        )

    @property
    def _kernel_bits(self) -> float:
        """Bits that a code takes in the kernel's layout."""
        if native_int4():
            return float(sum(plane_bits(self.code_bits)))
        return 4.0 if self.code_bits <= 4 else 8.0

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        group = self.kernel_group(shape[1], device)
        if group is None:
            return self.stored_bytes(shape)
        count = native_int4_bytes if native_int4() else int4_matrix_bytes
        return count(shape, bits=self.code_bits, group=group)

    def kernel_group(self, in_features: int, device: str | torch.device) -> int | None:
        """The kernel's group; None where no kernel takes so many inputs."""
        if torch.device(device).type != "cpu" or int4_kernel() is None:
            return None
        return kernel_group(self.group_size, in_features)


class Int4Linear(GroupedLinear):
    """The packed module; prepared, it holds an ``Int4Matrix`` or a native one."""

    format: Int4Format  # narrower than the base's

    @property
    def kernel(self) -> str:
        if self._matrix is None and self._group() is None:
            return "dequantize"
        native = isinstance(self._matrix, NativeInt4Matrix)
        name = int4_kernel() if self._matrix is None else "native int4" if native else "int4"
        return f"{name}" if self.format.code_bits <= 4 else f"{name} x 2"

    def _group(self) -> int | None:
        return self.format.kernel_group(self.in_features, self.device)
