"""Armor: a 2:4 core, and two block-diagonal wrappers that make its zeros cheap.

Paper:   Liu, Liu, Wang, Zhao, Yang, "ARMOR: High-Performance Semi-Structured Pruning via
         Adaptive Matrix Factorization", 2025.
Idea:    Start from a plain 2:4 mask with unit wrappers.  In turn, choose single groups of four
         anew, exactly, and move wrappers and core by Adam, under an error that is diagonal in the
         inputs.  That error ignores correlations; a last refit of the core, on all of H, brings
         them in, and is what makes the method beat a refitted sweep.

Equations -> code
    proxy loss, Adam, core step     Search        numerics/wrapped_core
    refit of the core (ours)        refit_core
Shapes:  O out features, I in features, b block.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM (without refit, its diagonal).   Fills: armor formats.
Cost:    time 14 O I b per iteration and 30 O I^2, memory ten W.
Differs from the paper:
    1. Errors count as they are: rows and columns are not normalised first, which had 0.91x the
       error on the outlier-layer and 0.99x on the synth-layer.
    2. The core is refitted behind the wrappers as they are stored (refit=false: as the search
       left it).
    3. Adam moves all parts by the slopes before the iteration; 300 iterations at 1e-3.
Raises:  NumericalError when W or H is not finite, or no token reached the site.
Checked: tests/claims/test_armor.py: proxy against its start, error against the refitted sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    refit_damping,
)
from blockwright.numerics.finite import all_finite
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.wrapped_core import Search, Wrapped, refit_core
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedSolution,
    Statistic,
    Statistics,
    WrappedFormat,
    WrappedSolution,
)

REFIT_STEPS = 30
"""Conjugate-gradient steps of the core's refit."""


@dataclass(frozen=True, kw_only=True)
class Armor(LinearMethod):
    """Search a core and its wrappers."""

    paper: ClassVar[str] = "Liu et al., ARMOR, 2025"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = WrappedFormat  # type: ignore[type-abstract]

    iterations: int = 300
    rate: float = 1e-3
    """Adam's, for weights of unit rows."""
    refit: bool = True
    damping: float = 0.01
    """Of the refit."""
    seed: int = 0
    """Of the groups that are drawn."""

    def __post_init__(self) -> None:
        check_damping("armor", self.damping)
        if self.iterations < 0:
            raise CandidateError(f"option armor@iterations: got {self.iterations}, needs 0 or more")
        if not 0 < self.rate < float("inf"):
            raise CandidateError(f"option armor@rate: got {self.rate}, needs a number above 0")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> WrappedSolution:
        if not isinstance(format, WrappedFormat):
            raise CandidateError(f"armor cannot fill {format.name}: it fills armor formats")
        check_finite(W_OI)
        H_II = input_gram(statistics)
        Hd_II = damped(H_II, refit_damping(self.damping, statistics, len(H_II)))
        found = self.search(W_OI, H_II.diagonal(), format).run(self.iterations)
        scale = unit_scale(W_OI)
        left_JBB, right_KBB = ((t.to(torch.bfloat16)) for t in (found.A_JBB * scale, found.B_KBB))
        found.A_JBB, found.B_KBB = left_JBB.float(), right_KBB.float()
        core_OI = refit_core(W_OI, Hd_II, found, REFIT_STEPS) if self.refit else found.C_OI
        if not all_finite(core_OI):
            raise NumericalError("the search left float32; use a smaller rate")
        kept_OK = core_OI[found.mask_OI].view(len(W_OI), -1)
        core = MaskedSolution(mask_OI=found.mask_OI, values=format.core.values.nearest(kept_OK))
        return WrappedSolution(left_JBB=left_JBB, core=core, right_KBB=right_KBB)

    def search(self, W_OI: Tensor, h_I: Tensor, format: WrappedFormat) -> Search:
        """The search at its start: 2:4 of W^2 h, unit wrappers, rows of unit mean square."""
        target_OI = W_OI / unit_scale(W_OI)
        mask_OI = format.core.best_mask(target_OI.abs() * h_I.sqrt())
        generator = torch.Generator(device=W_OI.device).manual_seed(self.seed)
        start = Wrapped.plain(target_OI, mask_OI, format.block)
        return Search(target_OI, h_I, start, self.rate, generator)


def unit_scale(W_OI: Tensor) -> float:
    """What W is divided by, so that its rows have unit mean square norm; 1 for zeros."""
    return float(W_OI.norm()) / len(W_OI) ** 0.5 or 1.0


METHOD = Armor
