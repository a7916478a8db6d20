"""The base of packed modules made of parts: each part is a packed module of its own.

The parts keep their own states, kernels and stored names (``left.weight``, ``left.scale``); an
empty ``weight`` stands for the whole, so that plain loading raises at its shape.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from blockwright.errors import FormatError
from blockwright.formats import format_from_spec
from blockwright.formats._linear import FormatLinear
from blockwright.formats._spec import spec_field
from blockwright.types import CompositeFormat, PackedFormat, Solution, ValueFormat

LARGEST_SHORT = 1 << 15


class CompositeLinear(FormatLinear):
    """Parts, and ``positions``: masks or indices, stored beside them."""

    weight: Tensor

    def __init__(
        self,
        format: PackedFormat,
        shape: tuple[int, int],
        *,
        parts: Mapping[str, FormatLinear],
        positions: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(format, shape, bias=bias, dtype=dtype)
        device = next(iter(parts.values())).device
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8, device=device))
        for name, tensor in positions.items():
            self.register_buffer(name, tensor)
        self.position_names = tuple(positions)
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self._weight_names = (
            *("weight", *positions),
            *(f"{name}.{stored}" for name, part in parts.items() for stored in part.weight_names),
        )

    def part(self, name: str) -> FormatLinear:
        """The packed module of a part."""
        found = self.get_submodule(name)
        if not isinstance(found, FormatLinear):
            raise TypeError(f"{name} of {self.format.name} is a {type(found).__name__}")
        return found

    @property
    def weight_names(self) -> tuple[str, ...]:
        return self._weight_names

    def stored_weight(self) -> dict[str, Tensor]:
        tensors = {name: self.get_buffer(name) for name in ("weight", *self.position_names)}
        for name in self.part_names:
            stored = self.part(name).stored_weight()
            tensors |= {f"{name}.{each}": tensor for each, tensor in stored.items()}
        return tensors

    def prepare(self) -> Self:
        for name in self.part_names:
            self.part(name).prepare()
        return self

    def restore(self) -> Self:
        for name in self.part_names:
            self.part(name).restore()
        return self

    @property
    def resident_bytes(self) -> int:
        own = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        return sum(t.numel() * t.element_size() for t in own) + sum(
            self.part(name).resident_bytes for name in self.part_names
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Its own tensors; the parts save theirs."""
        for name in ("weight", *self.position_names):
            destination[prefix + name] = self.get_buffer(name)
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()


class PlacedLinear(CompositeLinear):
    """Parts of which each has some rows or columns; prepared, ``_places`` says which."""

    _places: tuple[Tensor, ...] | None = None

    @abstractmethod
    def find_places(self) -> tuple[Tensor, ...]:
        """int32: what products gather by, from the positions."""

    @property
    def places(self) -> tuple[Tensor, ...]:
        """``find_places``, remembered once prepared."""
        return self.find_places() if self._places is None else self._places

    def prepare(self) -> Self:
        if self._places is None:
            with torch.inference_mode(False), torch.no_grad():
                self._places = self.find_places()
        return super().prepare()

    def restore(self) -> Self:
        self._places = None
        return super().restore()

    @property
    def kernel(self) -> str:
        return " + ".join(self.part(name).kernel for name in self.part_names)

    @property
    def resident_bytes(self) -> int:
        return super().resident_bytes + sum(each.nbytes for each in self._places or ())

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)


def packed_part(format: ValueFormat, solution: Solution, dtype: torch.dtype) -> FormatLinear:
    """The module of a part, from its solution."""
    return as_part(format.pack(solution, None, dtype))


def empty_parts(
    format: CompositeFormat, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> dict[str, FormatLinear]:
    """The modules of all parts, unfilled."""
    return {
        name: empty_part(format.values, part, dtype, device)
        for name, part in format.part_shapes(shape).items()
    }


def empty_part(
    format: ValueFormat, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> FormatLinear:
    """The module of a part, unfilled."""
    return as_part(format.empty(shape, bias=False, dtype=dtype, device=device))


def position_dtype(positions: int) -> torch.dtype:
    """The narrowest integer type that names so many positions and is not taken for bytes."""
    return torch.int16 if positions <= LARGEST_SHORT else torch.int32


def values_from(spec: Mapping[str, Any]) -> ValueFormat:
    """The format of the values that a composite's spec names; ``FormatError`` without one."""
    format = format_from_spec(spec_field(spec, "values"))
    if not isinstance(format, ValueFormat):
        raise FormatError(f"format spec {dict(spec)}: {format.name} cannot store values")
    return format


def as_part(module: object) -> FormatLinear:
    """A packed module as a part; ``TypeError`` for another kind."""
    if not isinstance(module, FormatLinear):
        raise TypeError(f"a part is a {type(module).__name__}, not a packed linear")
    return module
