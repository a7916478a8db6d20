"""Exact: every weight stays as it is, bit for bit.

Paper:   none; what lossless formats are filled with.
Idea:    A checkpoint's bfloat16 weights were widened to fp32 on the way here, which loses nothing;
         going back must lose nothing either, or the weights were never bfloat16.

Equations -> code
    W_hat = W                  solve
Shapes:  O out features, I in features.
Units:   error = 0.  Cost = bytes as stored.
Needs:   nothing.   Fills: lossless formats.
Cost:    time O(O I), memory two copies of W.
Differs from the paper: nothing known.
Raises:  NumericalError when a weight is not finite, or no bfloat16 number.
Checked: tests/claims/test_lossless.py: no bit changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.methods.quantize._range_search import check_finite
from blockwright.types import (
    DenseSolution,
    Format,
    LinearMethod,
    LosslessFormat,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Exact(LinearMethod):
    """Leave every weight as it is."""

    paper: ClassVar[str] = "baseline"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = LosslessFormat  # type: ignore[type-abstract]

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset()

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> DenseSolution:
        check_finite(W_OI)
        values = W_OI.to(torch.bfloat16)
        changed = int((values.float() != W_OI).sum())
        if changed:
            raise NumericalError(
                f"{changed} of {W_OI.numel()} weights are no bfloat16 numbers, and {format.name}"
                " stores nothing else without loss"
            )
        return DenseSolution(values_OI=values)


METHOD = Exact
