"""Llmint: keep the input columns whose activations are largest, round the rest row by row.

Paper:   Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8(): 8-bit Matrix Multiplication for
         Transformers at Scale", NeurIPS 2022.
Idea:    Above some billions of parameters a few features of the residual stream are far larger than
         all others, in every token.  Apart from them, one scale per token and one per row of the
         weight are enough for 8 bits on both sides.

Equations -> code
    S = {i : max |x_i| >= alpha}      largest_inputs    the K largest instead of those above alpha
    W_q = round(127 W / max |W_r|)    solve             of the columns that are not in S
Shapes:  O out features, I in features, K kept columns.
Units:   error = squared output error of the weight; rounded inputs are not in it.
Needs:   INPUT_ABSMAX (of as many columns as are kept).   Fills: llmint8.
Cost:    time O(O I), memory two copies of W.
Differs from the paper:
    1. K is the format's, so that bytes are known beforehand; alpha = 6 finds nothing in small
       models and would find another number in every linear.
    2. The columns are those of the largest inputs of the whole calibration text, not of each call.
Raises:  NumericalError when W is not finite, or no token reached the site.
Checked: output error against plain 8-bit rows where inputs have outliers, equality where nothing is
         kept: tests/claims/test_llmint.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import check_finite
from blockwright.numerics.outliers import largest_inputs
from blockwright.types import (
    DenseSolution,
    Format,
    GridSolution,
    LinearMethod,
    OutlierFormat,
    OutlierSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Llmint(LinearMethod):
    """LLM.int8()."""

    paper: ClassVar[str] = "Dettmers et al., LLM.int8(), NeurIPS 2022"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = OutlierFormat  # type: ignore[type-abstract]

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_ABSMAX})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> OutlierSolution:
        check_finite(W_OI)
        if not isinstance(format, OutlierFormat):
            raise CandidateError(f"llmint cannot fill {format.name}: it keeps whole columns")
        if statistics.tokens == 0:
            raise NumericalError("no calibration token reached this site: there are no outliers")
        absmax_I = statistics.need(Statistic.INPUT_ABSMAX)
        columns_K = largest_inputs(absmax_I, format.kept(W_OI.shape[1]))
        outliers_OK = W_OI[:, columns_K].to(torch.bfloat16)
        if not torch.isfinite(outliers_OK).all():
            raise NumericalError("a kept column is too large for bfloat16")
        rest_OI = W_OI.index_fill(1, columns_K, 0.0)
        grid = format.rest.fit_grid(rest_OI)
        return OutlierSolution(
            columns_K=columns_K,
            outliers=DenseSolution(values_OI=outliers_OK),
            rest=GridSolution(codes_OI=grid.encode(rest_OI, slice(None)), grid=grid),
        )


METHOD = Llmint
