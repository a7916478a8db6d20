"""Ksort: inputs in the order of their norms, then every value to the nearest.

Paper:   Trukhanov and Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024.
Idea:    A group's step is set by its largest value.  With columns sorted by norm, a large column
         shares its step with large columns, and small ones get small steps.  Nothing is computed
         but norms of the weight.

Equations -> code
    order = argsort(||W_:,j||)         order_by_norm    descending
    W_hat[:, order] = round(W[:, order])   nearest      of the format of the values
Shapes:  O out features, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   nothing.   Fills: permuted formats (ksort+*).
Cost:    time O(O I), memory one copy of W.
Differs from the paper: steps are searched where the format of the values does so.
Raises:  NumericalError when W is not finite.
Checked: tests/claims/test_lossless.py: error against the unsorted format where columns stand out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import check_finite
from blockwright.numerics.block_floating_point import order_by_norm
from blockwright.types import (
    Format,
    LinearMethod,
    PermutedFormat,
    PermutedSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Ksort(LinearMethod):
    """Sort the inputs, round to nearest."""

    paper: ClassVar[str] = "Trukhanov and Soloveychik, Accurate Block Quantization in LLMs, 2024"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = PermutedFormat  # type: ignore[type-abstract]

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset()

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> PermutedSolution:
        check_finite(W_OI)
        if not isinstance(format, PermutedFormat):
            raise CandidateError(f"ksort cannot fill {format.name}: it fills permuted formats")
        order_I = order_by_norm(W_OI.double().norm(dim=0))
        values = format.values.nearest(W_OI.index_select(1, order_I))
        return PermutedSolution(order_I=order_I, values=values)


METHOD = Ksort
