"""Icbs: swap pruned and kept weights, a small block of the mask at a time, while the error falls.

Paper:   Rosenberg, Brubaker, Schuetz, Zhu, et al., "Scalable iterative pruning of large language
         and vision models using block coordinate descent", 2024 (iterative Combinatorial Brain
         Surgeon).
Idea:    Scores judge weights one by one, but two pruned weights on correlated inputs do harm or
         cancel together.  From Wanda's mask on, a block of candidates is taken, the error is a
         quadratic in its bits, and swaps at a fixed number of zeros lower it.  A refit makes up
         for correlations too, so that most of the gain is gone behind one: measure before paying.

Equations -> code
    start                      best_mask          Wanda's
    quadratic in the bits      Swaps.errors       numerics/mask_swaps, from H in place of samples
    block of candidates        Swaps.block_of
    solver at fixed sum        best_swaps         greedy
Shapes:  P panels of R rows that share a mask, I in features.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time O(O I^2) per pass over rows that still gain, memory a batch of 64 x 64 tables.
Differs from the paper:
    1. The error of a layer's output in place of the loss: H is exact where the paper has 16
       samples, so there is no gradient term, no ridge, no tabu list and no held-back loss.
    2. Blocks are the moves of least cost (half pruned, half kept), chosen anew in every pass; for
       patterns, those with the best pair inside.
    3. Best-swap descent solves a block, in place of annealing.
    4. Kept weights are refitted (refit=false: the originals, as in the paper); quantized ones are
       then rounded in a sweep, as sparsegpt does.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored (quantized values).
Checked: tests/claims/test_sparsify.py: energy of the mask, error after the refit against Wanda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
    masked_solution,
    refitted_solution,
)
from blockwright.numerics.mask_swaps import Swaps
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.masks import spread_units
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Icbs(LinearMethod):
    """Improve a mask by swaps."""

    paper: ClassVar[str] = "Rosenberg et al., Scalable iterative pruning (iCBS), 2024"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    passes: int = 50
    """Blocks tried in every row, at most."""
    refit: bool = True
    damping: float = 0.01
    """Of the metric and the refit."""

    def __post_init__(self) -> None:
        check_damping("icbs", self.damping)
        if self.passes < 1:
            raise CandidateError(f"option icbs@passes: got {self.passes}, needs 1 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("icbs", format)
        check_finite(W_OI)
        mask_OI = self.best_mask(W_OI, input_gram(statistics), target)
        if self.refit:
            return refitted_solution(W_OI, mask_OI, target, statistics, self.damping)
        return masked_solution(W_OI, mask_OI, target, statistics, 0.0)

    def best_mask(self, W_OI: Tensor, H_II: Tensor, format: MaskedFormat) -> Tensor:
        """bool [O, I]: Wanda's mask after the swaps."""
        (rows, columns), (count, inputs) = format.unit, W_OI.shape
        mask_OI = format.best_mask(W_OI.abs() * H_II.diagonal().sqrt())
        padded = W_OI.new_zeros((-(-count // rows) * rows, inputs))
        padded[:count] = W_OI
        swaps = Swaps(
            W_PRI=padded.view(-1, rows, inputs),
            H_II=damped(H_II, self.damping),
            pattern=format.pattern_size,
            unit=columns,
        )
        pruned_PU = swaps.descend(~mask_OI[::rows, ::columns], self.passes)
        return ~spread_units(pruned_PU, rows, columns)[:count]


METHOD = Icbs
