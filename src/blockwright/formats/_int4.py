"""Formats whose codes the int4 kernel multiplies: one plane of 4 bits, two above."""

from __future__ import annotations

import torch

from blockwright.formats._grouped import GroupedFormat, GroupedLinear
from blockwright.numerics.int4_cpu import int4_matrix_bytes, kernel_group, tile_layout
from blockwright.types import FormatLimits


class Int4Format(GroupedFormat):
    """A grouped format in the int4 kernel's layout on CPU."""

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size or 1,
            packed_on_cpu=tile_layout() is not None,
            resident_bits=4.0 if self.code_bits <= 4 else 8.0,
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        group = self.kernel_group(shape[1], device)
        if group is None:
            return self.stored_bytes(shape)
        return int4_matrix_bytes(shape, bits=self.code_bits, group=group)

    def kernel_group(self, in_features: int, device: str | torch.device) -> int | None:
        """The kernel's group; None where no kernel takes so many inputs."""
        if torch.device(device).type != "cpu" or tile_layout() is None:
            return None
        return kernel_group(self.group_size, in_features)


class Int4Linear(GroupedLinear):
    """The packed module; prepared, it holds an ``Int4Matrix``."""

    format: Int4Format  # narrower than the base's

    @property
    def kernel(self) -> str:
        if self._matrix is None and self._group() is None:
            return "dequantize"
        return "int4" if self.format.code_bits <= 4 else "int4 x 2"

    def _group(self) -> int | None:
        return self.format.kernel_group(self.in_features, self.device)
