"""XAttention's thresholds per head: where tiles are worth most.

Paper:   R. Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring", ICML 2025
         (minimum threshold prediction).
Idea:    heads whose mass is concentrated lose nothing by a lower threshold, heads whose mass is
         spread lose much.  The error and the tiles of every head are measured at thresholds
         tau 0.9^m; then a dynamic program over heads finds the steps m_h of least error.

Equations -> code
    D[h][b] = min over m of D[h - 1][b - tiles(h, m)] + error(h, m)      least_error
Shapes:  error and tiles [H, M + 1] at 0 to M steps.
Cost:    M + 1 attention calls on the calibration tensors; H (M + 1) sums per tile of the budget.
Differs from the paper: 1. what is shared out is visited tiles; in the paper it is steps, of which a
         concentrated head takes many that save nothing.  2. quality is the squared output error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blockwright.attention.calling import Attended, attend
from blockwright.attention.heads import spread
from blockwright.attention.policies.xattention import XAttention
from blockwright.attention.policy import Context
from blockwright.attention.tiles import tile_status
from blockwright.errors import AttentionError

MOST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class HeadCosts:
    """What each head costs at 0, 1, ... steps below the threshold."""

    error: Tensor
    """fp64 [H, M + 1]: squared error of the output, summed over tokens."""
    tiles: Tensor
    """int64 [H, M + 1]: tiles visited."""
    visible: int
    """Tiles of all heads that hold a visible pair."""


@dataclass(kw_only=True)
class BlockHeads:
    """A watcher that fits the heads of every block to its first call of several queries."""

    policy: XAttention
    density: float
    found: dict[int, XAttention] = field(default_factory=dict)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, done: Attended, context: Context) -> None:
        block = context.layer
        if block is not None and block not in self.found and q.shape[2] > 1:
            self.found[block] = fit_heads(self.policy, q, k, v, context, density=self.density)


def fit_heads(
    policy: XAttention, q: Tensor, k: Tensor, v: Tensor, context: Context, *, density: float
) -> XAttention:
    """The policy with the steps of least output error on these tensors at most at ``density``.

    Raises ``AttentionError`` when the most steps everywhere still visit more.
    """
    costs = measure_heads(policy, q, k, v, context)
    budget = int(density * costs.visible)
    if budget < (least := int(costs.tiles.amin(1).sum())):
        raise AttentionError(
            f"xattention: {MOST_STEPS} steps below threshold {policy.threshold:g} in every head"
            f" still visit {least / costs.visible:.3f} of the tiles, got density {density:g};"
            " start from a lower threshold"
        )
    steps = least_error(costs.error, costs.tiles, budget)
    return replace(policy, steps="-".join(map(str, steps)))


def measure_heads(
    policy: XAttention, q: Tensor, k: Tensor, v: Tensor, context: Context
) -> HeadCosts:
    """Errors and tiles of all heads at 0 to ``MOST_STEPS`` steps."""
    heads, blocks = q.shape[1], (policy.block, policy.block)
    dense = attend(q, k, v, policy="dense", context=context).output.double()
    visible = tile_status(context.layout, *blocks).visible
    visible = spread(visible, heads).expand(len(q), -1, -1, -1)
    error, tiles, keys = [], [], visible.shape[-1]
    for step in range(MOST_STEPS + 1):
        tried = replace(policy, steps="-".join([str(step)] * heads))
        done = attend(q, k, v, policy=tried, context=context)
        error.append((done.output - dense).square().sum((0, 2, 3)))
        visited = visible if done.choice.selection is None else done.choice.selection.to_mask(keys)
        tiles.append((visited & visible).sum((0, 2, 3)))
    return HeadCosts(
        error=torch.stack(error, 1), tiles=torch.stack(tiles, 1), visible=int(visible.sum())
    )


def least_error(error: Tensor, tiles: Tensor, budget: int) -> tuple[int, ...]:
    """The column of each row, so that the errors [H, M] sum up to the least that ``budget`` tiles
    of [H, M] allow; the least tiles of all rows must fit."""
    best = torch.zeros(budget + 1, dtype=torch.float64)  # by tiles that may be visited
    taken = []
    for own_tiles, own_error in zip(tiles.tolist(), error.tolist(), strict=True):
        options = torch.full((len(own_tiles), budget + 1), torch.inf, dtype=torch.float64)
        for step, (count, squared) in enumerate(zip(own_tiles, own_error, strict=True)):
            if count <= budget:
                options[step, count:] = best[: budget + 1 - count] + squared
        best, choice = options.min(0)
        taken.append(choice)
    left, steps = budget, []
    for choice, own_tiles in zip(reversed(taken), reversed(tiles.tolist()), strict=True):
        steps.append(int(choice[left]))
        left -= own_tiles[steps[-1]]
    return tuple(reversed(steps))
