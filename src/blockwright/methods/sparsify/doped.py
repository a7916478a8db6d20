"""Doped: few values where they matter and a thin product for what all rows share, by turns.

Paper:   Thangarasa, Saxena, Gupta, Lie, "Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
         Training Efficiency", ICML 2024: its form "sparse doped", here of a trained weight.
Idea:    Outputs of a trained linear have a few large directions, which a thin product holds in few
         numbers; what is left has none, and there single values are the better use of bytes.  Each
         part is solved for what the other one leaves.  Where weights have no such directions
         (random ones), plain zeros lose less at equal bytes.

Equations -> code
    S = refit of W - P on its mask      Split.turn        SparseGPT's mask, and the one before:
                                                          row by row whichever does better
    P = SVD_R(W - S) in the metric H    Split.product     numerics/weighted_svd
    G^1/2 in front of both              fisher=true       second-order loss tr(G D H D^T)
Shapes:  O out features, I in features, R rank.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM; OUTPUT_GRADIENT too with fisher=true.   Fills: zeros with a product
         (sparse50&rank-r16).
Cost:    time rounds times a sweep, two refits and a decomposition: O(rounds (O I^2 + O^3)); memory
         four Grams and ten W.
Differs from the paper:
    1. No training: the paper trains both parts from scratch.
    2. Two starts, zeros first and the product first; the one that is better after a turn goes on.
Raises:  NumericalError when W, H or G is not finite, no token or gradient reached the site, or H
         cannot be factored.
Checked: tests/claims/test_doped.py: error against zeros alone and low rank alone, with planted
         directions and without; docs/decisions.md: on a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.lowrank._factors import equal_rows, rows_by_gradient, stored_factors
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    refit_damping,
    refitted_solution,
)
from blockwright.numerics.losses import row_errors
from blockwright.numerics.masked_refit import damped, iterative_refit
from blockwright.numerics.pruning_sweep import Pruner
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.types import (
    FactoredSolution,
    Format,
    LinearMethod,
    MaskedSumFormat,
    Statistic,
    Statistics,
    SumSolution,
)

LEAST_GAIN = 1e-3
"""Turns end when one lowers the error by a smaller share."""


@dataclass(frozen=True)
class Halves:
    """A mask, a product, and the weighted error of both with the mask's values refitted."""

    mask_OI: Tensor  # noqa: N815 - shape suffix
    product: FactoredSolution
    error: float


@dataclass(frozen=True)
class Split:
    """One weight that is to be divided."""

    W_OI: Tensor
    Hd_II: Tensor
    a_O: Tensor  # noqa: N815 - shape suffix
    """Weights of the rows."""
    pruner: Pruner
    format: MaskedSumFormat

    def turn(self, P_OI: Tensor, mask_OI: Tensor | None) -> Halves:
        """S for what a product leaves, then the product for what S leaves."""
        R_OI = self.W_OI - P_OI
        found_OI, _ = self.pruner.mask(R_OI, self.format.base)
        S_OI = iterative_refit(R_OI, self.Hd_II, found_OI)
        if mask_OI is not None:
            found_OI, S_OI = self._better_rows(R_OI, (found_OI, S_OI), mask_OI)
        product = self.product(self.W_OI - S_OI)
        D_OI = self.W_OI - S_OI - product.weight()
        error_O = row_errors(D_OI * self.a_O[:, None], self.Hd_II)
        return Halves(found_OI, product, float(error_O.sum(dtype=torch.float64)))

    def product(self, R_OI: Tensor) -> FactoredSolution:
        """The best product of the format's rank, its factors rounded as stored."""
        found = weighted_svd(R_OI * self.a_O[:, None], self.Hd_II)
        return stored_factors(found, R_OI, self.Hd_II, self.format.plus, self.a_O)

    def _better_rows(
        self, R_OI: Tensor, new: tuple[Tensor, Tensor], mask_OI: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask and values, panel by panel those of the new mask or of the one before."""
        kept_OI = iterative_refit(R_OI, self.Hd_II, mask_OI)
        gain_O = row_errors(kept_OI - R_OI, self.Hd_II) - row_errors(new[1] - R_OI, self.Hd_II)
        rows = self.format.base.unit[0]
        gain_P = torch.nn.functional.pad(gain_O, (0, -len(gain_O) % rows)).view(-1, rows).sum(1)
        better_O1 = (gain_P > 0).repeat_interleave(rows)[: len(gain_O), None]
        return torch.where(better_O1, new[0], mask_OI), torch.where(better_O1, new[1], kept_OI)


@dataclass(frozen=True, kw_only=True)
class Doped(LinearMethod):
    """Zeros and a thin product."""

    paper: ClassVar[str] = "Thangarasa et al., Sparse-IFT, ICML 2024"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedSumFormat  # type: ignore[type-abstract]

    fisher: bool = False
    rounds: int = 8
    damping: float = 0.01
    """Of the metric, the sweep and the refits."""

    def __post_init__(self) -> None:
        check_damping("doped", self.damping)
        if self.rounds < 1:
            raise CandidateError(f"option doped@rounds: got {self.rounds}, needs 1 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        gradient = {Statistic.OUTPUT_GRADIENT} if self.fisher else set()
        return frozenset({Statistic.INPUT_GRAM, *gradient})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> SumSolution:
        if not isinstance(format, MaskedSumFormat):
            raise CandidateError(
                f"doped cannot fill {format.name}: it fills zeros with a product, as"
                " sparse50&rank-r16"
            )
        check_finite(W_OI)
        H_II = input_gram(statistics)
        damping = refit_damping(self.damping, statistics, len(H_II))
        a_O = rows_by_gradient(statistics) if self.fisher else equal_rows(W_OI)
        pruner = Pruner.of(H_II, damping)
        found = self.by_turns(Split(W_OI, damped(H_II, damping), a_O, pruner, format))
        rest_OI = W_OI - found.product.weight()
        base = refitted_solution(
            rest_OI, found.mask_OI, format.base, statistics, self.damping, pruner
        )
        return SumSolution(base=base, plus=found.product)

    def by_turns(self, split: Split) -> Halves:
        """The best of two starts, bettered turn by turn."""
        starts = (torch.zeros_like(split.W_OI), split.product(split.W_OI).weight())
        best = min((split.turn(P_OI, None) for P_OI in starts), key=lambda found: found.error)
        for _ in range(self.rounds - 1):
            found = split.turn(best.product.weight(), best.mask_OI)
            if not found.error < best.error:
                break
            small = found.error > best.error * (1 - LEAST_GAIN)
            best = found
            if small:
                break
        return best


METHOD = Doped
