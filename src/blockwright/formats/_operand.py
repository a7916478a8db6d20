"""Packed weights where a model expects a Parameter: tables, tied heads and stacks of experts.

A module keeps its own class and forward (a scaled embedding, a loop over experts).  The Parameter
that it multiplies with is replaced by a ``PackedOperand``, which answers the few functions that
take a weight and passes them on to the packed module.  An operand is no Tensor and no Module.

    install_linear   a whole linear           state dict: <linear>.<tensor>
    install_table    an embedding or a head   state dict: <module>.packed.<tensor>
    install_operand  a second user of a packed weight (a tied head); stores nothing
    install_experts  a 3-D stack of experts   state dict: <experts>.<parameter>_packed.<e>.<tensor>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockwright.errors import FormatError
from blockwright.formats._linear import FormatLinear


class PackedOperand:
    """Stands where a Parameter [O, I] (``transposed``: [I, O]) stood."""

    def __init__(self, packed: FormatLinear, *, transposed: bool = False) -> None:
        self.packed = packed
        self.transposed = transposed

    @property
    def shape(self) -> torch.Size:
        out_features, in_features = self.packed.shape
        return torch.Size(
            (in_features, out_features) if self.transposed else (out_features, in_features)
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.packed.dtype

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def ndim(self) -> int:
        return 2

    requires_grad = False
    grad = None
    _is_hf_initialized = (
        True  # transformers leaves it alone when it initialises what was not loaded
    )

    def dim(self) -> int:
        return 2

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def t(self) -> PackedOperand:
        """The transpose, of the same packed module."""
        return PackedOperand(self.packed, transposed=not self.transposed)

    @property
    def T(self) -> PackedOperand:
        return self.t()

    def dequantize(self) -> Tensor:
        """fp32, in the shape of the operand."""
        weight = self.packed.dequantize()
        return weight.t() if self.transposed else weight

    def __repr__(self) -> str:
        return f"PackedOperand({self.packed}, transposed={self.transposed})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = ANSWERS.get(func)
        if answer is None:
            name = getattr(func, "__name__", str(func))
            raise TypeError(
                f"{name} of a packed weight is not defined: it can be multiplied (linear, matmul,"
                " @) or looked up (embedding); use .dequantize() for anything else"
            )
        return answer(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: PackedOperand, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, PackedOperand) or weight.transposed:
        raise TypeError("linear needs a packed weight [out, in]; this one is transposed")
    y = weight.packed.multiply(input)
    return y if bias is None else y + bias.to(y.dtype)


def _matmul(input: Tensor, other: PackedOperand) -> Tensor:
    if not isinstance(other, PackedOperand) or not other.transposed:
        raise TypeError("matmul needs a packed weight [in, out] on its right side")
    return other.packed.multiply(input)


def _embedding(
    input: Tensor,
    weight: PackedOperand,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a packed table; the arguments on gradients do nothing."""
    if weight.transposed or max_norm is not None:
        raise TypeError("embedding needs a packed table [rows, features] and no max_norm")
    rows = weight.packed.look_up(input.reshape(-1))
    return rows.view(*input.shape, weight.packed.in_features)


ANSWERS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
}


class ExpertStack(nn.Module):
    """Stands where a Parameter [E, O, I] (``transposed``: [E, I, O]) stood; experts may differ."""

    def __init__(
        self,
        members: Sequence[FormatLinear | Tensor | nn.Module | None],
        shape: torch.Size | Sequence[int],
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        device: str = "meta",
    ) -> None:
        """``members``: per expert a packed module, a kept slice, or None: kept, to be loaded.

        A kept slice has the orientation of ``shape`` and is stored as ``<e>.weight``.  Raises
        ``FormatError`` when a member does not fit ``shape``.
        """
        super().__init__()
        self.shape = torch.Size(shape)
        self.transposed = transposed
        self._dtype = dtype
        if len(members) != self.shape[0]:
            raise FormatError(f"{len(members)} experts do not fill a stack of {tuple(shape)}")
        for expert, member in enumerate(members):
            if isinstance(member, nn.Module):
                self.add_module(str(expert), member)
            else:
                empty = torch.empty(self.shape[1:], dtype=dtype, device=device)
                self.add_module(str(expert), _KeptExpert(empty if member is None else member))
            if self[expert].shape != self.shape[1:]:
                raise FormatError(
                    f"expert {expert} of {tuple(self[expert].shape)} does not fit {tuple(shape)}"
                )

    @property
    def dtype(self) -> torch.dtype:
        return self[0].dtype if len(self) else self._dtype

    @property
    def device(self) -> torch.device:
        return self[0].device

    @property
    def ndim(self) -> int:
        return 3

    def dim(self) -> int:
        return 3

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int | Tensor) -> PackedOperand | Tensor:
        """The weight of one expert; a 0-dimensional tensor is an index, too."""
        if isinstance(expert, Tensor) and expert.dim() > 0:
            raise FormatError(
                "packed experts are multiplied one by one: load the model with"
                " experts_implementation='eager'"
            )
        member = self.get_submodule(str(int(expert)))
        if isinstance(member, FormatLinear):
            return PackedOperand(member, transposed=self.transposed)
        if not isinstance(member, _KeptExpert):
            raise TypeError(
                f"expert {int(expert)} is a {type(member).__name__}, not a packed linear"
            )
        return member.weight


class _KeptExpert(nn.Module):
    """One expert's own slice."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)


def install_linear(parent: nn.Module, path: str, packed: FormatLinear) -> None:
    """Replace the linear at ``path`` (one name, or dotted) below ``parent``."""
    owner, _, name = path.rpartition(".")
    parent.get_submodule(owner).register_module(name, packed)


def install_table(module: nn.Module, packed: FormatLinear) -> PackedOperand:
    """Let ``module`` (an embedding or a head) look up and multiply with ``packed``, and own it."""
    operand = install_operand(module, "weight", packed)
    module.register_module("packed", packed)
    return operand


def install_operand(
    module: nn.Module, name: str, packed: FormatLinear, *, transposed: bool = False
) -> PackedOperand:
    """Replace the Parameter ``name`` by an operand of ``packed``, which another module owns."""
    operand = PackedOperand(packed, transposed=transposed)
    old = getattr(module, name)
    if tuple(old.shape) != tuple(operand.shape):
        raise FormatError(
            f"a packed weight of {tuple(operand.shape)} does not fit {name} of {tuple(old.shape)}"
        )
    delattr(module, name)
    setattr(module, name, operand)
    return operand


def install_experts(module: nn.Module, parameter: str, stack: ExpertStack) -> None:
    """Replace the 3-D Parameter ``parameter`` by ``stack``, stored as ``<parameter>_packed``."""
    old = getattr(module, parameter)
    if tuple(old.shape) != tuple(stack.shape):
        raise FormatError(
            f"a stack of {tuple(stack.shape)} does not fit {parameter} of {tuple(old.shape)}"
        )
    delattr(module, parameter)
    module.register_module(f"{parameter}_packed", stack)
    object.__setattr__(module, parameter, stack)  # a second name, not a second submodule
