"""armor: a 2:4 core between two block-diagonal wrappers.

Paper:   Liu, Liu, Wang, Zhao, Yang, "ARMOR: High-Performance Semi-Structured Pruning via
         Adaptive Matrix Factorization", 2025.
Idea:    W_hat = A C B, where C keeps 2 of every 4 inputs.  The wrappers cost 2 b (O + I) bytes and
         as many multiplications per token, little beside the core of a large weight, and give it a
         basis in which its zeros lose less.

Names:   armor-b8 to armor-b128: the rows of a block, a power of two that divides O and I.
         +int8, +int4-g64 ...: the core's kept values stored so.
Stored:  weight      uint8, empty, so that plain loading raises
         left        bfloat16 [O / b, b, b]
         right       bfloat16 [I / b, b, b]
         core.*      [O, I] as ``sparse2of4`` stores it
         bias        as it was
Shapes:  O out features, I in features, b block.
Units:   bits per weight = those of the core + 16 b (1 / O + 1 / I).
Kernels: three products; the core's as in ``sparse``: semi-structured on CUDA, elsewhere dequantized
         once.  No speed is claimed on a CPU.
Raises:  CandidateError for an unknown name or values, FormatError for a shape or a newer version.
Checked: the CUDA path was not run: it needs hardware.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats._composite import CompositeLinear, as_part
from blockwright.formats._spec import check_version, spec_field
from blockwright.formats.sparse import SparseFormat
from blockwright.numerics.block_diagonal import left_times, times_right
from blockwright.types import (
    Format,
    FormatLimits,
    SiteKind,
    Solution,
    WrappedFormat,
    WrappedSolution,
)

BLOCKS = (8, 16, 32, 64, 128)
NAME = re.compile(rf"armor-b(?P<block>{'|'.join(map(str, BLOCKS))})")


@dataclass(frozen=True)
class ArmorFormat(WrappedFormat):
    """``armor-b<block>``"""

    block: int
    core: SparseFormat = field(default_factory=lambda: SparseFormat(n=2, m=4))

    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({SiteKind.LINEAR})
    default_method: ClassVar[str | None] = "armor"

    def __post_init__(self) -> None:
        if self.block not in BLOCKS or (self.core.n, self.core.m) != (2, 4):
            raise FormatError(
                f"armor format of blocks of {self.block} around {self.core.name}: blocks are"
                f" {', '.join(map(str, BLOCKS))}, the core is sparse2of4"
            )

    @property
    def name(self) -> str:
        return f"armor-b{self.block}" + self.core.name.removeprefix(self.core.structure)

    @classmethod
    def parse(cls, name: str) -> Self:
        match = NAME.fullmatch(name)
        if match is None:
            allowed = ", ".join(map(str, BLOCKS))
            raise CandidateError(
                f"unknown format {name!r}; did you mean 'armor-b32'? (blocks of {allowed}; then"
                " +int8 or the like for the core's values, or nothing)"
            )
        return cls(int(match["block"]))

    def with_values(self, values: Format) -> Self:
        return replace(self, core=self.core.with_values(values))

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        return ("armor-b8", "armor-b16+int8", "armor-b8+int4-g32")

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            out_multiple=self.block,
            in_multiple=self.block,
            packed_on_cpu=False,
            resident_bits=self.core.limits.resident_bits,
        )

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        ragged = [features for features in shape if features % self.block]
        if ragged:
            fitting = [b for b in BLOCKS if not any(features % b for features in shape)]
            hint = f"use armor-b{fitting[-1]}" if fitting else "use a format without blocks"
            raise FormatError(
                f"{self.name}: {where}: {ragged[0]} features are not whole blocks of {self.block};"
                f" {hint}"
            )
        self.core.check_shape(shape, where)

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return self.core.stored_bytes(shape) + self._wrapper_bytes(shape)

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        return self.core.resident_bytes(shape, device) + self._wrapper_bytes(shape)

    def _wrapper_bytes(self, shape: tuple[int, int]) -> int:
        return self.block * sum(shape) * torch.bfloat16.itemsize

    def spec(self) -> dict[str, Any]:
        return {
            "format": "armor",
            "version": self.version,
            "block": self.block,
            "core": self.core.spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        check_version(cls, spec)
        core = format_from_spec(spec_field(spec, "core"))
        if not isinstance(core, SparseFormat):
            raise FormatError(f"format spec {dict(spec)}: {core.name} is no sparse core")
        return cls(spec_field(spec, "block"), core)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> ArmorLinear:
        if not isinstance(solution, WrappedSolution):
            raise TypeError(f"{self.name} stores a WrappedSolution, not {solution}")
        core = as_part(self.core.pack(solution.core, None, dtype))
        return ArmorLinear(
            self,
            (core.out_features, core.in_features),
            parts={"core": core},
            positions={"left": solution.left_JBB.clone(), "right": solution.right_KBB.clone()},
            bias=bias_O,
            dtype=dtype,
        )

    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> ArmorLinear:
        b = self.block
        left, right = (
            torch.empty(features // b, b, b, dtype=torch.bfloat16, device=device)
            for features in shape
        )
        core = as_part(self.core.empty(shape, bias=False, dtype=dtype, device=device))
        return ArmorLinear(
            self,
            shape,
            parts={"core": core},
            positions={"left": left, "right": right},
            bias=torch.empty(shape[0], dtype=dtype, device=device) if bias else None,
            dtype=dtype,
        )


class ArmorLinear(CompositeLinear):
    """The packed module: x goes through the right wrapper, the core, the left wrapper."""

    left: Tensor
    right: Tensor

    @property
    def kernel(self) -> str:
        return f"block-diagonal, {self.part('core').kernel}"

    def product(self, x: Tensor) -> Tensor:
        wrapped = times_right(x, self.right.mT.to(x.dtype))
        return times_right(self.part("core").product(wrapped), self.left.mT.to(x.dtype))

    def differentiable_weight(self) -> Tensor:
        return self._between(self.part("core").differentiable_weight())

    def dequantize(self) -> Tensor:
        return self._between(self.part("core").dequantize()).detach()

    def rows(self, index: Tensor) -> Tensor:
        return self.dequantize()[index].to(self.dtype)

    def _between(self, core_OI: Tensor) -> Tensor:
        return times_right(left_times(self.left.float(), core_OI), self.right.float())


FORMAT = ArmorFormat
