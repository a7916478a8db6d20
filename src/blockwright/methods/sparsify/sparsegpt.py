"""Sparsegpt: prune column after column; the columns still free make up for each zero.

Paper:   Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
         One-Shot", ICML 2023.
Idea:    GPTQ's sweep, where fixing a weight may mean zero.  Which weights go is decided late, from
         the weights as earlier columns left them: w^2 / inv(H)_jj is what zeroing costs once
         the free columns have answered.  Quantized values are rounded in a sweep, so that their
         errors, too, are made up for.  The kept set leans slightly to one side.

Equations -> code
    Algorithm 1             Pruner.mask      fix a column, update those still free
    section 3.5             Pruner.quantize  sparsity and quantization jointly
    U, masks, rounding      numerics/pruning_sweep
Shapes:  O out features, I in features, J columns of a pattern or tile, K kept per row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time O(O I^2 + I^3) and that of the refit, memory three copies of the Gram, four of W.
Differs from the paper:
    1. Without a pattern every row (a panel: all of its rows together) keeps equally many weights of
       a tile of 128 columns; the paper chooses among all rows of it.
    2. The kept values are refitted on the final mask (refit=false: as the sweep left them), with a
       damping of 0.1 at least where tokens are fewer than twice the inputs.
    3. Quantized values are rounded in a second sweep, from the refitted ones, on the mask of the
       first: with equal support the error is that of the refit plus that of the rounding, and the
       sweep lowers the latter.  refit=false is the paper's single sweep.
    4. Grids of quantized values are fitted when a group of kept values is reached.
    5. Inputs that never fired go first; where they stay, they keep their weight.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: tests/claims/test_sparsify.py: error against Wanda, refit never worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
    refitted_solution,
)
from blockwright.numerics.pruning_sweep import Pruner
from blockwright.types import (
    Format,
    GridFormat,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)


@dataclass(frozen=True, kw_only=True)
class Sparsegpt(LinearMethod):
    """Prune in a compensating sweep."""

    paper: ClassVar[str] = "Frantar and Alistarh, SparseGPT, ICML 2023"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 3
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    refit: bool = True
    damping: float = 0.01
    """Of the sweep and the refit."""

    def __post_init__(self) -> None:
        check_damping("sparsegpt", self.damping)

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        return next(self.solve_each(W_OI, statistics, (format,)))

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[MaskedSolution]:
        """``solve`` for one format after another, bit for bit; the inverse Hessian is shared."""
        check_finite(W_OI)
        pruner = Pruner.of(input_gram(statistics), self.damping)
        for format in formats:
            yield self._solution(W_OI, statistics, pruner, masked_format("sparsegpt", format))

    def _solution(
        self, W_OI: Tensor, statistics: Statistics, pruner: Pruner, format: MaskedFormat
    ) -> MaskedSolution:
        values = format.values
        if isinstance(values, GridFormat) and not self.refit:
            return pruner.quantize(W_OI, format, values, None)
        mask_OI, kept_OI = pruner.mask(W_OI, format)
        if self.refit:
            return refitted_solution(W_OI, mask_OI, format, statistics, self.damping, pruner)
        kept_OK = kept_OI[mask_OI].view(len(W_OI), -1)
        return MaskedSolution(mask_OI=mask_OI, values=values.nearest(kept_OK))


METHOD = Sparsegpt
