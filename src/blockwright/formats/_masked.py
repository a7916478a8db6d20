"""The base of packed modules of zeros: kept values in a format of their own, and their positions.

Prepared, a ``Matrix`` is multiplied; it replaces bfloat16 values, which it holds exactly, and
stands beside others.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.formats._composite import CompositeLinear, empty_parts, packed_part
from blockwright.formats._linear import frozen_product
from blockwright.formats.bf import BfFormat
from blockwright.types import MaskedFormat, MaskedSolution, Solution


class Matrix(Protocol):
    """A sparse weight as this machine multiplies it."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O]."""

    def dense(self) -> Tensor:
        """W [O, I]."""


LinearT = TypeVar("LinearT", bound="MaskedLinear")


class MaskedLinear(CompositeLinear):
    """Values and positions, portable; or a matrix, prepared."""

    format: MaskedFormat
    positions: Tensor
    _matrix: Matrix | Tensor | None = None

    # -- what a format implements

    @abstractmethod
    def columns(self) -> Tensor:
        """int64 [O, K]: the kept columns of every row, rising."""

    @abstractmethod
    def matrix_of(self, kept_OK: Tensor) -> Matrix | Tensor:
        """What is multiplied here; a tensor is the weight laid out densely."""

    # -- states

    def prepare(self) -> Self:
        if self._matrix is None and not any(t.requires_grad for t in self.buffers()):
            with torch.inference_mode(False), torch.no_grad():
                exact = isinstance(self.format.values, BfFormat)
                kept_OK = self.part("values").dequantize()
                self._matrix = self.matrix_of(kept_OK.to(torch.bfloat16 if exact else self.dtype))
                if exact:
                    self._modules["values"] = None
        return self

    def restore(self) -> Self:
        if self._matrix is not None:
            with torch.inference_mode(False), torch.no_grad():
                if self._modules["values"] is None:
                    tensors = self.stored_weight()
                    self._matrix = None
                    values = empty_parts(self.format, self._shape, self.dtype, "meta")["values"]
                    values.load_stored({"weight": tensors["values.weight"]})
                    self.add_module("values", values)
            self._matrix = None
        return super().restore()

    def stored_weight(self) -> dict[str, Tensor]:
        if self._modules["values"] is not None:
            return super().stored_weight()
        kept_OK = self._dense().gather(1, self.columns())
        own = {"weight": self.weight, "positions": self.positions}
        return own | {"values.weight": kept_OK.flatten()}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._modules["values"] is None:
            destination[prefix + "values.weight"] = self.stored_weight()["values.weight"]

    @property
    def resident_bytes(self) -> int:
        own = [self.weight, self.positions, *self.parameters(recurse=False)]
        values = 0 if self._modules["values"] is None else self.part("values").resident_bytes
        matrix = 0 if self._matrix is None else self._matrix.nbytes
        return sum(t.numel() * t.element_size() for t in own) + values + matrix

    # -- products

    def product(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.buffers()):
            return F.linear(x, self.differentiable_weight().to(x.dtype))
        matrix = self.prepare()._matrix
        if matrix is None or isinstance(matrix, Tensor):
            return F.linear(x, self._dense().to(x.dtype))
        return frozen_product(x, matrix.product, self.dequantize)

    def differentiable_weight(self) -> Tensor:
        """Gradients reach the values in the portable state alone; see ``restore``."""
        if self._modules["values"] is None:
            return self._dense().float()
        kept_OK = self.part("values").differentiable_weight()
        return kept_OK.new_zeros(self._shape).scatter(1, self.columns(), kept_OK)

    def dequantize(self) -> Tensor:
        if self._modules["values"] is None:
            return self._dense().float()
        kept_OK = self.part("values").dequantize()
        return kept_OK.new_zeros(self._shape).scatter_(1, self.columns(), kept_OK)

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)

    # -- details

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _dense(self) -> Tensor:
        if self._matrix is None:
            raise RuntimeError("the weight is not dequantized yet; call prepare() first")
        return self._matrix if isinstance(self._matrix, Tensor) else self._matrix.dense()


def pack_masked(
    module: type[LinearT],
    format: MaskedFormat,
    solution: Solution,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> LinearT:
    """A module of kept values and their mask."""
    if not isinstance(solution, MaskedSolution):
        raise TypeError(f"{format.name} stores a MaskedSolution, not {solution}")
    O, I = solution.mask_OI.shape  # noqa: E741
    return module(
        format,
        (O, I),
        parts={"values": packed_part(format.values, solution.values, dtype)},
        positions={"positions": format.packed_positions(solution.mask_OI)},
        bias=bias,
        dtype=dtype,
    )


def empty_masked(
    module: type[LinearT],
    format: MaskedFormat,
    shape: tuple[int, int],
    *,
    bias: bool,
    dtype: torch.dtype,
    device: str,
) -> LinearT:
    """A module without values yet."""
    positions = torch.empty(format.position_bytes(shape), dtype=torch.uint8, device=device)
    return module(
        format,
        shape,
        parts=empty_parts(format, shape, dtype, device),
        positions={"positions": positions},
        bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
        dtype=dtype,
    )
