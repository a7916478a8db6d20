"""Admm: the mask on which a copy that fits the data and a copy that is sparse agree.

Paper:   Xie, Gherardi, Pan, Huang, "HollowNeRF: Pruning Hashgrid-Based NeRFs with
         Trainable Collision Mitigation", ICCV 2023 (its pruner, here for one layer and its squared
         output error).
Idea:    Weights that were pruned come back when the others cannot make up for them, because the
         mask is chosen anew in every round from what the data ask for.  It starts at Wanda's mask
         and keeps, row by row, the best one that it met: it cannot end worse.  The problem is not
         convex, so nothing more is promised.

Equations -> code
    V, Z, U                    admm          numerics/admm
    Proj: largest |T| sqrt(h)  OnBestMask    keeps the values of T
    support(Z), least squares  Best          the best mask of every row, by a short refit
Shapes:  O out features, I in features, P panels of rows that share a mask.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: every sparse format.
Cost:    time 130 O(O I^2) and O(I^3), memory two Grams and ten W.
Differs from the paper:
    1. The layer's squared error in closed form in place of gradients of a loss, and masks of a
       format in place of a saliency grid.
    2. rho is fixed; every tenth mask is tried by a short refit, and the best of each row is kept.
    3. Kept values are refitted; quantized ones are rounded in a sweep, as sparsegpt does.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: tests/claims/test_sparsify.py: never worse than Wanda's mask, error against SparseGPT.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.sparsify._masking import (
    check_damping,
    check_finite,
    input_gram,
    masked_format,
    refit_damping,
    refitted_solution,
)
from blockwright.numerics.admm import admm
from blockwright.numerics.losses import row_errors
from blockwright.numerics.masked_refit import damped, iterative_refit
from blockwright.types import (
    Format,
    LinearMethod,
    MaskedFormat,
    MaskedSolution,
    Statistic,
    Statistics,
)

TRIED_EVERY = 10
"""Iterations between two masks that are tried."""
TRIAL_STEPS = 10
"""Conjugate-gradient steps of a trial, within 0.4% of the exact error."""


@dataclass
class Best:
    """The best mask of every panel so far."""

    W_OI: Tensor
    Hd_II: Tensor
    panel_rows: int
    mask_OI: Tensor  # noqa: N815 - shape suffix
    error_P: Tensor  # noqa: N815 - shape suffix

    @classmethod
    def of(cls, W_OI: Tensor, Hd_II: Tensor, format: MaskedFormat) -> Best:
        """No mask yet."""
        mask_OI = torch.zeros(W_OI.shape, dtype=torch.bool, device=W_OI.device)
        panels = -(-len(W_OI) // format.unit[0])
        return cls(W_OI, Hd_II, format.unit[0], mask_OI, W_OI.new_full((panels,), torch.inf))

    def try_mask(self, mask_OI: Tensor) -> None:
        """Keep the panels of a mask that do better after a short refit."""
        refitted_OI = iterative_refit(self.W_OI, self.Hd_II, mask_OI, TRIAL_STEPS)
        error_O = row_errors(refitted_OI - self.W_OI, self.Hd_II)
        padded = torch.nn.functional.pad(error_O, (0, -len(error_O) % self.panel_rows))
        error_P = padded.view(-1, self.panel_rows).sum(1)
        better_P = error_P < self.error_P
        self.error_P = torch.where(better_P, error_P, self.error_P)
        better_O = better_P.repeat_interleave(self.panel_rows)[: len(mask_OI)]
        self.mask_OI = torch.where(better_O[:, None], mask_OI, self.mask_OI)


class OnBestMask:
    """T -> T on its best mask by the diagonal model; the last one stays in ``mask_OI``."""

    def __init__(self, format: MaskedFormat, h_I: Tensor) -> None:
        self.format, self.root_I = format, h_I.sqrt()
        self.mask_OI = torch.zeros(0, 0, dtype=torch.bool)

    def __call__(self, T_OI: Tensor) -> Tensor:
        self.mask_OI = self.format.best_mask(T_OI.abs() * self.root_I)
        return T_OI * self.mask_OI


@dataclass(frozen=True, kw_only=True)
class Admm(LinearMethod):
    """Alternate between the data and the mask."""

    paper: ClassVar[str] = "Xie et al., HollowNeRF, ICCV 2023"
    family: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = MaskedFormat  # type: ignore[type-abstract]

    rho: float = 0.3
    """Of the mean of diag H: how strongly the two copies are pulled together."""
    iterations: int = 60
    damping: float = 0.01
    """Of the metric and the refit."""

    def __post_init__(self) -> None:
        check_damping("admm", self.damping)
        if not 0 < self.rho < float("inf"):
            raise CandidateError(f"option admm@rho: got {self.rho}, needs a number above 0")
        if self.iterations < 1:
            raise CandidateError(f"option admm@iterations: got {self.iterations}, needs 1 or more")

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> MaskedSolution:
        target = masked_format("admm", format)
        check_finite(W_OI)
        H_II = input_gram(statistics)
        damping = refit_damping(self.damping, statistics, len(H_II))
        mask_OI = self.best_mask(W_OI, H_II, damping, target)
        return refitted_solution(W_OI, mask_OI, target, statistics, self.damping)

    def best_mask(self, W_OI: Tensor, H_II: Tensor, damping: float, format: MaskedFormat) -> Tensor:
        """bool [O, I]: the best mask met, row by row."""
        Hd_II = damped(H_II, damping)
        project = OnBestMask(format, H_II.diagonal())
        best = Best.of(W_OI, Hd_II, format)
        before_OI, unchanged = project.mask_OI, 0
        for t, _ in enumerate(islice(admm(W_OI, Hd_II, project, self.rho), self.iterations)):
            unchanged = unchanged + 1 if torch.equal(before_OI, project.mask_OI) else 0
            before_OI = project.mask_OI
            if t % TRIED_EVERY == 0 or t == self.iterations - 1:
                best.try_mask(project.mask_OI)
            if unchanged == TRIED_EVERY:
                break
        return best.mask_OI


METHOD = Admm
