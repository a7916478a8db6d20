"""Awq: scale up the inputs' strong channels before rounding, so that they lose less.

Paper:   Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han, "AWQ: Activation-aware Weight
         Quantization for On-Device LLM Compression and Acceleration", MLSys 2024.
Idea:    A few input channels carry most of the signal.  Multiplying a channel's weights by t > 1
         and its input by 1 / t changes no output, but the rounding error of that channel shrinks
         by t as long as its group's range hardly grows.  How far to go is one number per set of
         linears that share the input, found by trying.  It fails where a group's range is set by
         the scaled channels themselves.

Equations -> code
    Eq. (4)   s = s_X^alpha         scale_of       s_X = mean |x| per channel, alpha in [0, 1)
    Eq. (5)   argmin_s L(s)         choose_scale   over a grid of alpha
              L(s) = |Q(W s) x / s - W x|^2        output_error, by the Gram of x
Shapes:  O out features of one linear, I in features that all share.
Units:   error = squared output error, summed over the outputs of all linears, mean over tokens.
Needs:   INPUT_ABSMEAN, INPUT_GRAM.   Fills: every grid format, by the next method of the chain
         (rounding to nearest with ranges searched, if none is named).
Cost:    time O(steps O I^2), memory two copies of the largest W.
Differs from the paper:
    1. The error is that of the linears' own outputs, summed, from the Gram; the authors' code runs
       the attention or feed-forward module around them.
    2. Ranges are searched while alpha is (`search`), by the error that uncorrelated inputs would
       give; theirs are clipped once alpha is chosen, by output error.
    3. t is kept in [0.01, 100], and is 1 for channels whose input is always zero.
Raises:  NumericalError when a weight or the Gram is not finite.
Checked: error against rounding to nearest, the grid holds alpha = 0: tests/claims/test_awq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import (
    GridFitter,
    Search,
    check_finite,
    check_search,
    grid_fitter,
)
from blockwright.numerics.finite import all_finite
from blockwright.numerics.losses import quadratic_error
from blockwright.types import Format, GridFormat, ScalingMethod, Statistic, Statistics

LEAST_SCALE, LARGEST_SCALE = 1e-2, 1e2


@dataclass(frozen=True, kw_only=True)
class Awq(ScalingMethod):
    """Activation-aware scales."""

    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = GridFormat  # type: ignore[type-abstract]
    default_chain: ClassVar[tuple[str, tuple[tuple[str, str], ...]]] = (
        "rtn",
        (("search", "gram"),),
    )

    search: Search = "gram"
    steps: int = 20
    """alpha is tried at 0, 1/steps, ..., (steps - 1)/steps."""

    def __post_init__(self) -> None:
        check_search("awq", self.search)
        if self.steps < 1:
            raise CandidateError(f"option awq@steps: got {self.steps}, needs at least 1")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_ABSMEAN, Statistic.INPUT_GRAM})

    def choose_scale(
        self, weights_OI: Sequence[Tensor], statistics: Statistics, format: Format
    ) -> Tensor:
        if not isinstance(format, GridFormat):
            raise CandidateError(f"awq cannot scale for {format.name}: it fills grid formats")
        H_II = statistics.need(Statistic.INPUT_GRAM)
        s_X = statistics.need(Statistic.INPUT_ABSMEAN)
        for W_OI in weights_OI:
            check_finite(W_OI)
        if not all_finite(H_II) or not all_finite(s_X):
            raise NumericalError("the input statistics hold NaN or infinity")
        best, least = torch.ones_like(s_X), float("inf")
        for step in range(self.steps):
            t_I = scale_of(s_X, step / self.steps)
            fit = grid_fitter(format, self.search, H_II.diagonal() / t_I.square())
            error = output_error(weights_OI, t_I, H_II, fit)
            if error < least:
                best, least = t_I, error
        return best


def scale_of(s_X: Tensor, alpha: float) -> Tensor:
    """Eq. (4): s_X^alpha, its largest and least value made reciprocal; 1 where s_X is zero."""
    live = s_X > 0
    if not live.any():
        return torch.ones_like(s_X)
    t_I = s_X.clamp(min=s_X[live].min()).pow(alpha)
    t_I = t_I / (t_I.max() * t_I.min()).sqrt()
    return torch.where(live, t_I.clamp(LEAST_SCALE, LARGEST_SCALE), torch.ones_like(t_I))


def output_error(weights_OI: Sequence[Tensor], t_I: Tensor, H_II: Tensor, fit: GridFitter) -> float:
    """Eq. (5): sum over linears of tr(D H D^T), D = Q(W t) / t - W, Q = round to nearest."""
    total = 0.0
    for W_OI in weights_OI:
        scaled = W_OI * t_I
        grid = fit(scaled, slice(None))
        D_OI = grid.decode(grid.encode(scaled, slice(None)), slice(None)).div_(t_I).sub_(W_OI)
        total += quadratic_error(D_OI, H_II)
    return total


METHOD = Awq
