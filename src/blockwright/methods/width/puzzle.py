"""Puzzle: channels go one by one, each the one that is missed least, and what is left is distilled.

Paper:   Bercovich, Ronen, Abramovich, et al., "Puzzle: Distillation-Based NAS for
         Inference-Optimized LLMs", ICML 2025: its children of fewer channels, and blockwise local
         distillation; its mixed-integer program is the plan.
Idea:    Channels cancel and repeat each other, so what one is worth depends on which others are
         gone.  They are removed one at a time: the next is the one with which the error grows
         least.  The smaller FFN is then trained against the block it came from, on the block's own
         inputs, so that all its matrices make up for what is missing, and not the last one alone.

Equations -> code     a_j the channels, w_j the columns of the last matrix, C = E[a a^T]
    s = sum_removed a_j w_j; |s + a_j w_j|^2 = |s|^2 + 2 a_j s.w_j + a_j^2 |w_j|^2; over tokens
    E|s|^2 = sum_jk Q_jk, Q = C o W^T W                         eliminate
    the same where those that stay make up for each that goes:
    |w_j|^2 / [C^-1]_jj                                         eliminate_fitted
    least squares behind the channels that stay                 numerics/channel_refit
    MSE(child, parent) / MSE(parent, 0)                         pipeline/distilling, tuning/loop
Shapes:  O outputs, I channels, K channels that stay.
Units:   rate: change of an element per step, relative to its size.  Cost = bytes as stored.
Needs:   INPUT_GRAM of the last matrix; hidden states around the block where it is distilled.
         Fills: narrow-*, heads-*.
Cost:    time O((I - K) I (I + O)) and 3 steps forwards of a block over 2,048 tokens, memory 3 I^2
         doubles.
Differs from the paper:
    1. Mean squares in place of mean norms: then C is all there is to know.
    2. Children begin at a least-squares fit, and a channel counts by what is missed behind it;
       refit=false is the paper's rule, which leaves columns as they are.
    3. A part is distilled inside its own block, everything else of the parent; 96 steps with the
       best state on held batches kept, the start among them.
    4. Key-value heads are left out by the same rule, not averaged.
    5. Linear children are not offered: a plan drops a part, or keeps some of it.
    6. Matrices that are stored in another format (narrow-p75+int4-g64) are filled behind the fit,
       and not distilled.
Raises:  NumericalError when C holds NaN or infinity, or is not positive definite even damped.
Checked: tests/claims/test_width.py: elimination against independent scores, with a fit and without;
         tests/pipeline/test_distilling.py: distillation never ends worse than the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.channel_importance import largest_channels
from blockwright.numerics.channel_refit import damped_factor, refit
from blockwright.types import (
    DistillingMethod,
    Format,
    Statistic,
    Statistics,
    WidthFormat,
)

ROUNDS = 256
"""Removals of as many channels at a time as it takes for no more of them."""


@dataclass(frozen=True, kw_only=True)
class Puzzle(DistillingMethod):
    """``puzzle``"""

    steps: int = 96
    """Of the distillation; 0: the fit alone."""
    rate: float = 0.01
    checks: int = 4
    refit: bool = True
    damping: float = 1e-4
    """Of the fit."""

    paper: ClassVar[str] = (
        "Bercovich, Ronen, Abramovich et al.: Puzzle: Distillation-Based NAS for"
        " Inference-Optimized LLMs, ICML 2025"
    )
    family: ClassVar[str] = "width"
    fills: ClassVar[type[Format]] = WidthFormat  # type: ignore[type-abstract]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 0 or self.checks < 1 or not (self.rate > 0 and self.damping > 0):
            raise CandidateError(
                f"options puzzle@steps={self.steps},rate={self.rate:g},checks={self.checks},"
                f"damping={self.damping:g}: steps must not be negative, checks 1 or more, the"
                " others above 0; the defaults are 96, 0.01, 4 and 0.0001"
            )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def narrow(
        self,
        W_OI: Tensor,
        statistics: Statistics,
        channels: int,
        *,
        columns: int = 1,
        readers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        C_II = statistics.need(Statistic.INPUT_GRAM).double()
        if not torch.isfinite(C_II).all() or not torch.isfinite(W_OI).all():
            raise NumericalError("the weight or the Gram of its channels holds NaN or infinity")
        unit = float(C_II.diagonal().mean()) or 1.0
        count = W_OI.shape[1] // columns - channels
        if self.refit:
            removed = eliminate_fitted(W_OI.double(), C_II, count, columns, self.damping * unit)
        else:
            Q_II = C_II * (W_OI.T.double() @ W_OI.double())
            Q_CC = Q_II.unflatten(0, (-1, columns)).sum(1).unflatten(1, (-1, columns)).sum(2)
            removed = eliminate(Q_CC, count)
        stays_C = torch.ones(W_OI.shape[1] // columns, device=W_OI.device)
        stays_C[removed] = 0.0
        kept_K, inputs_J = largest_channels(stays_C.repeat_interleave(columns), channels, columns)
        if not self.refit:
            return kept_K, W_OI[:, inputs_J].contiguous()
        return kept_K, refit(W_OI, C_II, inputs_J, self.damping * unit)


def eliminate(Q_CC: Tensor, count: int) -> list[int]:
    """Channels in the order in which they go: next the one with which sum_jk Q_jk over all removed
    grows least.
    """
    growth_C, removed = Q_CC.diagonal().clone(), list[int]()
    for _ in range(count):
        channel = int(growth_C.argmin())
        removed.append(channel)
        growth_C += 2 * Q_CC[:, channel]
        growth_C[channel] = torch.inf
    return removed


def eliminate_fitted(
    W_OI: Tensor, C_II: Tensor, count: int, columns: int, damping: float
) -> list[int]:
    """The same where the columns that stay are fitted again after each removal: one that goes costs
    tr(W_g [P_gg]^-1 W_g^T), P = (C + damping I)^-1 of what is left.
    """
    P_II = torch.cholesky_inverse(damped_factor(C_II, damping))
    W_OI, removed = W_OI.clone(), list[int]()
    groups = torch.arange(len(P_II), device=P_II.device).view(-1, columns)
    at_once = -(-count // ROUNDS)
    while len(removed) < count:
        cost_C = _costs(W_OI, P_II, groups)
        cost_C[removed] = torch.inf
        some = cost_C.argsort(stable=True)[: min(at_once, count - len(removed))]
        gone = groups[some].flatten()
        share_GI = torch.linalg.solve(P_II[gone][:, gone], P_II[gone])
        W_OI -= W_OI[:, gone] @ share_GI
        P_II = P_II - P_II[:, gone] @ share_GI
        P_II[gone, gone] = 1.0
        removed += some.tolist()
    return removed


def _costs(W_OI: Tensor, P_II: Tensor, groups_CG: Tensor) -> Tensor:
    """tr(W_g [P_gg]^-1 W_g^T) of every channel, [C]."""
    cost_C: Tensor
    if groups_CG.shape[1] == 1:
        cost_C = W_OI.square().sum(0) / P_II.diagonal()
        return cost_C
    P_CGG = P_II[groups_CG[:, :, None], groups_CG[:, None, :]]
    W_CGO = W_OI.T.unflatten(0, (-1, groups_CG.shape[1]))
    cost_C = (W_CGO * torch.linalg.solve(P_CGG, W_CGO)).sum((1, 2))
    return cost_C


METHOD = Puzzle
