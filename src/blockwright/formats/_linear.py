"""The base of all packed modules: a drop-in for ``nn.Linear`` whose weight is stored in a format.

Two states.  *Portable*: the stored tensors are the module's buffers, machine-independent.
*Prepared*: what this machine's kernel multiplies has taken their place, and the portable tensors
are recovered bit for bit whenever they are asked for (``stored_tensors``, ``state_dict``).

Shapes:  O out features, I in features, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockwright.errors import FormatError
from blockwright.types import PackedFormat

CHUNK_WEIGHTS = 1 << 20
"""Weights dequantized at a time from dense codes: 4 MiB of fp32."""


class FormatLinear(nn.Module, ABC):
    """Base of packed modules; see ``types.PackedLinear`` for the interface others rely on."""

    bias: Tensor | None
    tuned: bool = False
    """Whether products and rows give gradients to what is stored; the portable state only."""

    def __init__(
        self,
        format: PackedFormat,
        shape: tuple[int, int],
        *,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """``dtype``: of the activations; ``bias`` [O] is kept as it is."""
        super().__init__()
        self.format = format
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        )

    # -- what a format implements

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x W^T without the bias, [..., I] -> [..., O], on the fastest path there is."""

    @abstractmethod
    def differentiable_weight(self) -> Tensor:
        """W [O, I] fp32 with gradients to the floating-point tensors it is made of."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """W [O, I], fp32."""

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """Rows [len(index), I] of W in the activations' dtype, for embeddings."""

    @property
    @abstractmethod
    def weight_names(self) -> tuple[str, ...]:
        """The names of ``stored_weight``."""

    @abstractmethod
    def prepare(self) -> Self:
        """Change to this machine's kernel layout, once loaded; harmless when repeated."""

    @abstractmethod
    def restore(self) -> Self:
        """Change back to the portable tensors, to train or replace them; harmless when repeated."""

    def leave_kernel(self) -> None:
        """Hold nothing that only this device can use, before a move."""
        self.restore()

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Name of the path that ``forward`` takes, as far as it is known before ``prepare``."""

    # -- what every format shares

    def stored_weight(self) -> dict[str, Tensor]:
        """The tensors as stored on disk, bias left out, in their stored order."""
        return {name: self.get_buffer(name).detach() for name in self.weight_names}

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weight's tensors in memory now, bias included."""
        return sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        y = self.multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """``product``, with gradients to what is stored where it is tuned."""
        return (
            F.linear(x, self.differentiable_weight().to(x.dtype)) if self.tuned else self.product(x)
        )

    def look_up(self, index: Tensor) -> Tensor:
        """``rows``, with gradients to what is stored where it is tuned."""
        if not self.tuned:
            return self.rows(index)
        return self.differentiable_weight()[index].to(self.dtype)

    def differentiable(self, x: Tensor) -> Tensor:
        """The same product with gradients to x, the bias and the floating-point stored tensors."""
        return self._linear(x, self.differentiable_weight().to(x.dtype))

    def reference(self, x: Tensor) -> Tensor:
        """The same product, plainly: dequantize, multiply in fp32, round to the dtype of x."""
        return self._linear(x.float(), self.dequantize()).to(x.dtype)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the stored tensors, bias included where there is one."""
        return self.weight_names if self.bias is None else (*self.weight_names, "bias")

    def load_stored(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the stored tensors (no copies); the inverse of ``stored_tensors``.

        Raises ``FormatError`` when a name, a shape or a stored dtype is another.
        """
        if set(tensors) != set(self.stored_names):
            raise FormatError(
                f"{self.format.name} stores {list(self.stored_names)}, got {list(tensors)}"
            )
        self.restore()
        for name, tensor in tensors.items():
            held = self.stored_tensor(name)
            alike = tensor.dtype == held.dtype or (name == "bias" and tensor.is_floating_point())
            if tensor.shape != held.shape or not alike:
                raise FormatError(
                    f"{self.format.name}: {name} is {tensor.dtype} {list(tensor.shape)},"
                    f" needs {held.dtype} {list(held.shape)}"
                )
        for name, tensor in tensors.items():
            made = nn.Parameter(tensor.detach(), requires_grad=False) if name == "bias" else tensor
            self.replace_stored(name, made)

    def stored_tensor(self, name: str) -> Tensor:
        """One of the stored tensors (of a part: ``left.scale``), of the portable module."""
        part, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(part), leaf)
        return tensor

    def replace_stored(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in its place, of any dtype and with gradients, for tuning."""
        part, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(part), leaf, tensor)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors as stored on disk, machine-independent, bias included."""
        tensors = self.stored_weight()
        if self.bias is not None:
            tensors["bias"] = self.bias.detach()
        return tensors

    @property
    def stored_bytes(self) -> int:
        """Bytes of ``stored_tensors``."""
        bias = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        return self.format.stored_bytes((self.out_features, self.in_features)) + bias

    @property
    def shape(self) -> torch.Size:
        """(O, I)"""
        return torch.Size((self.out_features, self.in_features))

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.get_buffer("weight").device

    def check_inputs(self, x: Tensor) -> None:
        """Raise ``ValueError`` for x [..., I] of another I."""
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self.format.name}: {x.shape[-1]} inputs given, {self.in_features} needed"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.format.name}, in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, kernel={self.kernel}"
        )

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert: stored tensors keep their dtypes, only ``dtype`` and the bias change."""
        self.leave_kernel()
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self.stored_tensors().items():
            destination[prefix + name] = tensor
        if keep_vars and self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any
    ) -> None:
        self.restore()
        super()._load_from_state_dict(state_dict, *arguments, **options)


class BufferedLinear(FormatLinear):
    """A packed module whose stored tensors are its buffers."""

    def __init__(
        self,
        format: PackedFormat,
        shape: tuple[int, int],
        *,
        bias: Tensor | None,
        dtype: torch.dtype,
        **stored: Tensor,
    ) -> None:
        """``stored``: the tensors as they are stored, in their order."""
        super().__init__(format, shape, bias=bias, dtype=dtype)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        self._stored_names = tuple(stored)

    @property
    def weight_names(self) -> tuple[str, ...]:
        return self._stored_names


class ChunkedLinear(BufferedLinear):
    """One that is dequantized some rows at a time where no kernel takes it."""

    @abstractmethod
    def _rows(self, rows: slice | Tensor) -> Tensor:
        """fp32 [rows, I], with gradients to what is stored."""

    def dequantize(self) -> Tensor:
        return torch.cat([chunk for _, chunk in self._chunks()])

    def rows(self, index: Tensor) -> Tensor:
        return self._rows(index).detach().to(self.dtype)

    def _chunked_product(self, x_TI: Tensor) -> Tensor:
        """x W^T [T, O] with one chunk of the weight in memory."""
        y_TO = x_TI.new_empty((x_TI.shape[0], self.out_features))
        for rows, W_RI in self._chunks():
            torch.mm(x_TI, W_RI.to(x_TI.dtype).t(), out=y_TO[:, rows])
        return y_TO

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row slices with their weights, fp32 without gradients."""
        step = max(1, CHUNK_WEIGHTS // self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            with torch.no_grad():
                yield rows, self._rows(rows)


def frozen_product(
    x: Tensor, multiply: Callable[[Tensor], Tensor], weight: Callable[[], Tensor]
) -> Tensor:
    """``multiply(x)`` with a gradient to x: ``weight()`` [O, I] is asked for in the backward."""
    y: Tensor = _FrozenProduct.apply(x, multiply, weight)  # type: ignore[no-untyped-call]
    return y


class _FrozenProduct(torch.autograd.Function):
    """x W^T on a kernel without a backward: the gradient to x takes the dequantized weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, multiply: Callable[[Tensor], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        ctx.weight = weight
        return multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight().to(grad.dtype), None, None
