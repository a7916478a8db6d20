"""The base of formats of dense codes in groups of inputs, and of their packed modules.

A format says what its groups store beside the codes (``layout``) and how codes are decoded; names,
bytes, states, chunked products and gradients are here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import FormatError
from blockwright.formats._linear import ChunkedLinear, frozen_product
from blockwright.formats._spec import check_not_empty
from blockwright.numerics.int4_cpu import Int4Matrix
from blockwright.numerics.int4_native import NativeInt4Matrix
from blockwright.numerics.int8_cpu import Int8Matrix
from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes
from blockwright.types import FormatLimits, GridFormat, SiteKind

GROUP_SIZES = (32, 64, 128, 0)
"""0 = the whole row."""
GROUP_NAME = r"g32|g64|g128|row"
Matrix = Int4Matrix | NativeInt4Matrix | Int8Matrix
"""A weight in the layout of a kernel."""
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape and dtype of what is stored beside the codes."""


class GroupedFormat(GridFormat):
    """Codes of ``code_bits`` bits; implementations are frozen dataclasses."""

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR, SiteKind.TABLE})
    default_method: ClassVar[str | None] = "rtn"
    module: ClassVar[type[GroupedLinear]]
    """The packed module."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits per code, 1 to 8."""

    @abstractmethod
    def layout(self, out_features: int, groups: int) -> Layout:
        """What is stored beside the codes of ``groups`` groups per row."""

    @abstractmethod
    def with_group_size(self, group_size: int) -> Self:
        """The same format in other groups; 0 = the whole row."""

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(in_multiple=self.group_size or 1, resident_bits=float(self.code_bits))

    def groups(self, in_features: int) -> int:
        """Groups per row, G."""
        return in_features // self.group_size if self.group_size else 1

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        check_not_empty(self, shape, where)
        in_features = shape[1]
        if self.group_size and in_features % self.group_size:
            raise FormatError(
                f"{self.name}: {where}: group size {self.group_size} does not divide"
                f" {in_features} inputs; use {' or '.join(self.fitting(in_features))}"
            )

    def fitting(self, in_features: int) -> list[str]:
        """Names of formats like this one whose groups divide the inputs."""
        sizes = [size for size in GROUP_SIZES if size == 0 or in_features % size == 0]
        return [self.with_group_size(size).name for size in sizes]

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        beside = self.layout(shape[0], self.groups(shape[1])).values()
        return packed_bytes(self.code_bits, *shape) + sum(
            math.prod(size) * dtype.itemsize for size, dtype in beside
        )

    def packed(
        self,
        codes_OI: Tensor,
        beside: Mapping[str, Tensor],
        bias_O: Tensor | None,
        dtype: torch.dtype,
    ) -> GroupedLinear:
        """The module of codes and what is stored beside them."""
        return self.module(
            self,
            (codes_OI.shape[0], codes_OI.shape[1]),
            weight=pack_codes(codes_OI, self.code_bits),
            **beside,
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> GroupedLinear:
        codes = packed_bytes(self.code_bits, *shape)
        layout = self.layout(shape[0], self.groups(shape[1])).items()
        return self.module(
            self,
            shape,
            weight=torch.empty(codes, dtype=torch.uint8, device=device),
            **{name: torch.empty(size, dtype=d, device=device) for name, (size, d) in layout},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class GroupedLinear(ChunkedLinear):
    """The packed module.  Prepared, where there is a kernel, the buffers are None and ``_matrix``
    holds the only copy.
    """

    format: GroupedFormat  # narrower than the base's
    weight: Tensor | None

    _matrix: Matrix | None = None

    # -- what a format implements

    @abstractmethod
    def decoded(self, codes_RGJ: Tensor, rows: slice | Tensor) -> Tensor:
        """fp32 [R, G, J] of codes of these rows, with gradients to what is stored beside them."""

    def packed_matrix(self) -> Matrix | None:
        """The weight in the layout of this machine's kernel; None: no kernel takes it."""
        return None

    def beside_of(self, matrix: Matrix) -> dict[str, Tensor]:
        """What stood beside the codes of a matrix, bit for bit."""
        raise NotImplementedError(f"{self.format.name} has no matrix")

    # -- states

    def prepare(self) -> Self:
        """A module whose scales are trained stays portable, as does one that no kernel takes."""
        if self._matrix is None and not self._is_trained():
            with torch.inference_mode(False), torch.no_grad():
                self._matrix = self.packed_matrix()
            if self._matrix is not None:
                for name in self.weight_names:
                    setattr(self, name, None)
        return self

    def restore(self) -> Self:
        if self._matrix is not None:
            with torch.inference_mode(False), torch.no_grad():
                tensors = self.stored_weight()
            self._matrix = None
            for name, tensor in tensors.items():
                setattr(self, name, tensor)
        return self

    def stored_weight(self) -> dict[str, Tensor]:
        if self._matrix is None:
            return super().stored_weight()
        codes = pack_codes(self._matrix.codes(), self.format.code_bits)
        return {"weight": codes, **self.beside_of(self._matrix)}

    @property
    def kernel(self) -> str:
        return "dequantize"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.weight is None else self.weight.device

    @property
    def resident_bytes(self) -> int:
        return super().resident_bytes + (0 if self._matrix is None else self._matrix.nbytes)

    # -- products

    def product(self, x: Tensor) -> Tensor:
        self.check_inputs(x)
        if torch.is_grad_enabled():
            if self._is_trained():
                return F.linear(x, self.differentiable_weight().to(x.dtype))
            if x.requires_grad:
                return frozen_product(x, self._multiply, self.dequantize)
        return self._multiply(x)

    def differentiable_weight(self) -> Tensor:
        """Gradients reach what is stored in the portable state alone; see ``restore``."""
        if self._matrix is not None:
            return self._matrix.dequantize()
        return self._rows(slice(None))

    def dequantize(self) -> Tensor:
        if self._matrix is not None:
            return self._matrix.dequantize()
        return super().dequantize()

    def rows(self, index: Tensor) -> Tensor:
        if self._matrix is not None:
            return self._matrix.rows(index).to(self.dtype)
        return super().rows(index)

    # -- details

    def _multiply(self, x: Tensor) -> Tensor:
        matrix = self.prepare()._matrix
        if (
            matrix is not None
            and x.dtype == torch.bfloat16
            and 0 < x.numel() < matrix.many_tokens * self.in_features
        ):
            return matrix.product(x.contiguous())
        x_TI = x.reshape(-1, self.in_features)
        y_TO = self._chunked_product(x_TI) if matrix is None else matrix.dense_product(x_TI)
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def _is_trained(self) -> bool:
        return any(buffer.requires_grad for buffer in self.buffers())

    def _codes(self, rows: slice | Tensor) -> Tensor:
        """uint8 [rows, I]"""
        chosen = self.get_buffer("weight").view(self.out_features, -1)[rows]
        bits = self.format.code_bits
        return unpack_codes(chosen.reshape(-1), bits, chosen.shape[0], self.in_features)

    def _rows(self, rows: slice | Tensor) -> Tensor:
        codes = self._codes(rows)
        groups = self.format.groups(self.in_features)
        return self.decoded(codes.view(len(codes), groups, -1), rows).view(codes.shape)
