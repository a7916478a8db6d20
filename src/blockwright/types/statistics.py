"""Calibration statistics of one site, and the names by which methods declare what they read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from blockwright.errors import StatisticMissingError

if TYPE_CHECKING:
    from torch import Tensor


class Statistic(StrEnum):
    """Names of what capture can gather for a linear with I inputs and O outputs."""

    INPUT_GRAM = "input_gram"
    """H = E[x x^T], [I, I] fp32."""
    INPUT_SAMPLES = "input_samples"
    """A seeded sample of input rows, [S, I] fp32."""
    INPUT_ABSMAX = "input_absmax"
    """max |x| per input feature, [I] fp32."""
    INPUT_ABSMEAN = "input_absmean"
    """mean |x| per input feature, [I] fp32."""
    CROSS_GRAM = "cross_gram"
    """C = E[x0 x^T], [I, I] fp32: x0 = what the original has where x is; behind a compressed prefix
    alone."""
    OUTPUT_GRADIENT = "output_gradient"
    """G = E[g^2] per output feature, [O] fp32; g = gradient of the summed loss at one token."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What one site saw during calibration.  Fields not gathered are None."""

    tokens: int
    """Tokens that reached the site (for an expert: that were routed to it)."""
    input_gram: Tensor | None = None
    input_samples: Tensor | None = None
    input_absmax: Tensor | None = None
    input_absmean: Tensor | None = None
    cross_gram: Tensor | None = None
    output_gradient: Tensor | None = None

    def with_cross_gram(self, C_II: Tensor) -> Statistics:
        """The same statistics with ``cross_gram``."""
        return replace(self, cross_gram=C_II)

    def only(self, needs: Collection[Statistic]) -> Statistics:
        """The same statistics without those that were not asked for."""
        kept = {name.value: getattr(self, name.value) for name in Statistic if name in needs}
        return Statistics(tokens=self.tokens, **kept)

    def scaled(self, t_I: Tensor) -> Statistics:
        """What the site sees when its inputs x become x / t, t [I] > 0."""
        gram, samples = self.input_gram, self.input_samples
        absmax, absmean = self.input_absmax, self.input_absmean
        cross = self.cross_gram
        return Statistics(
            tokens=self.tokens,
            input_gram=None if gram is None else gram / t_I[:, None] / t_I,
            input_samples=None if samples is None else samples / t_I,
            input_absmax=None if absmax is None else absmax / t_I,
            input_absmean=None if absmean is None else absmean / t_I,
            cross_gram=None if cross is None else cross / t_I[:, None] / t_I,
            output_gradient=self.output_gradient,
        )

    def of_inputs(self, kept_K: Tensor) -> Statistics:
        """What is seen of some inputs alone."""
        gram, cross = self.input_gram, self.cross_gram
        return replace(
            self,
            input_gram=None if gram is None else gram[kept_K][:, kept_K].contiguous(),
            cross_gram=None if cross is None else cross[kept_K][:, kept_K].contiguous(),
            input_samples=_columns(self.input_samples, kept_K),
            input_absmax=_columns(self.input_absmax, kept_K),
            input_absmean=_columns(self.input_absmean, kept_K),
        )

    def of_outputs(self, rows_R: Tensor) -> Statistics:
        """What is known of some outputs alone."""
        return replace(self, output_gradient=_columns(self.output_gradient, rows_R))

    def need(self, name: Statistic) -> Tensor:
        """The tensor of a statistic; raises ``StatisticMissingError`` when it is not there."""
        value: Tensor | None = getattr(self, name.value)
        if value is None:
            raise StatisticMissingError(f"statistic {name.value} was not declared or not gathered")
        return value


def _columns(tensor: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[..., kept].contiguous()
