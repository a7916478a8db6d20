"""How good a plan can be: the Lagrangian bound of a program, and a plan that comes near it.

With prices on the limits (loss per byte) every unit decides alone, which is solved at once.  The
prices that give the largest bound also tell how much each column would cost over it; a column that
costs more than the distance between bound and a known plan is in no better plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blockwright.plan.program import Array, Program

BISECTIONS = 80
PASSES = 3
"""Rounds over the limits when there are several."""


@dataclass(frozen=True)
class Relaxed:
    """A program with its limits priced."""

    bound: float
    """No plan has less loss."""
    slack: Array
    """[N] how far a plan with this column is above the bound, at least."""
    taken: Array
    """Indices of the columns of the cheapest plan at these prices."""


@dataclass(frozen=True)
class Bounded:
    """What is known before the search."""

    relaxed: Relaxed
    incumbent: Array | None
    """Columns of a plan that keeps the limits, if one was met."""


def bound_program(program: Program) -> Bounded:
    """Choose prices limit by limit; the plan at the last prices is filled up with what fits."""
    prices_L = np.zeros(len(program.bound))
    relaxed = relax(program, prices_L)
    for _ in range(PASSES if len(prices_L) > 1 else 1):
        for limit in range(len(prices_L)):
            prices_L[limit] = _least_price(program, prices_L, limit)
    final = relax(program, prices_L)
    fits = bool((room_left(program, final.taken) >= 0).all()) and drops_possible(
        program, final.taken
    )
    best = final if final.bound > relaxed.bound else relaxed
    return Bounded(best, _fill(program, final.taken) if fits else None)


def relax(program: Program, prices_L: Array) -> Relaxed:
    """The cheapest plan when bytes have prices, and the bound that it gives."""
    price_N = _least_losses(program) + prices_L @ program.cost
    total_N, best_U = _best_of_subtrees(program, price_N)
    roots = program.parent < 0
    open_U = np.zeros(len(program.units))
    plain_U = _least_by_unit(program, np.where(program.holds, np.inf, total_N))
    for depth in range(1, program.depth.max(initial=0) + 1):
        level = np.flatnonzero(program.depth == depth)
        parent = program.parent[level]
        open_U[level] = open_U[parent] + plain_U[parent] - best_U[parent]
    slack_N = total_N - best_U[program.unit] + open_U[program.unit]
    return Relaxed(
        bound=float(best_U[roots].sum() - prices_L @ program.bound),
        slack=slack_N,
        taken=_cheapest(program, total_N, best_U),
    )


def _least_losses(program: Program) -> Array:
    """[N] what a column adds at least: where a pair saves something, half of it each."""
    loss_N = program.loss.astype(float)
    np.add.at(loss_N, program.pair, np.minimum(program.pair_loss, 0.0)[:, None] / 2)
    return loss_N


def smallest_cost(program: Program, limit: int) -> int:
    """The least that any plan takes of one limit."""
    _, best_U = _best_of_subtrees(program, program.cost[limit].astype(float))
    return int(best_U[program.parent < 0].sum())


def loss_of(program: Program, taken: Array) -> float:
    """Loss of a plan, that of its pairs included."""
    chosen_N = np.zeros(len(program.loss), dtype=bool)
    chosen_N[taken] = True
    both_P = chosen_N[program.pair].all(axis=1)
    return float(program.loss[taken].sum() + program.pair_loss[both_P].sum())


def drops_possible(program: Program, taken: Array) -> bool:
    """Whether a block stays, and those that go are neighbours where they have to be."""
    dropped_B = np.isin(program.drops, taken)
    runs = np.count_nonzero(np.diff(dropped_B, prepend=False) & dropped_B)
    return bool(not dropped_B.all() or not len(dropped_B)) and bool(runs < 2 or not program.one_run)


def room_left(program: Program, taken: Array) -> Array:
    """What a plan leaves of each limit, [L]; negative where it is over."""
    room_L: Array = program.bound - program.cost[:, taken].sum(axis=1)
    return room_L


def _best_of_subtrees(program: Program, price_N: Array) -> tuple[Array, Array]:
    """Price of every column with the best choice below it [N], and the least of every unit [U]."""
    total_N = price_N.copy()
    best_U = _least_by_unit(program, total_N)
    for depth in range(program.depth.max(initial=0), 0, -1):
        level = np.flatnonzero(program.depth == depth)
        inner_U = np.zeros(len(program.units))
        np.add.at(inner_U, program.parent[level], best_U[level])
        total_N += np.where(program.holds, 0.0, inner_U[program.unit])
        best_U = _least_by_unit(program, total_N)
    return total_N, best_U


def _least_by_unit(program: Program, value_N: Array) -> Array:
    starts_U = np.searchsorted(program.unit, np.arange(len(program.units)))
    least_U: Array = np.minimum.reduceat(value_N, starts_U)
    return least_U


def _cheapest(program: Program, total_N: Array, best_U: Array) -> Array:
    """First cheapest column of every unit that is decided, from the roots down."""
    cheapest = np.flatnonzero(total_N == best_U[program.unit])
    _, first = np.unique(program.unit[cheapest], return_index=True)
    picked_U = cheapest[first]
    active_U = program.parent < 0
    for depth in range(1, program.depth.max(initial=0) + 1):
        level = np.flatnonzero(program.depth == depth)
        parent = program.parent[level]
        active_U[level] = active_U[parent] & ~program.holds[picked_U[parent]]
    taken: Array = picked_U[active_U]
    return taken


def _least_price(program: Program, prices_L: Array, limit: int) -> float:
    """Least price (geometric bisection) at which the cheapest plan keeps one limit."""
    prices_L = prices_L.copy()

    def keeps(price: float) -> bool:
        prices_L[limit] = price
        return bool(room_left(program, relax(program, prices_L).taken)[limit] >= 0)

    if keeps(0.0):
        return 0.0
    spread = np.abs(program.loss).sum() + prices_L.max() * np.abs(program.cost).sum()
    high = max(float(spread), np.finfo(float).tiny)
    low = high * 1e-40
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low) * np.sqrt(high))
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _fill(program: Program, taken: Array) -> Array:
    """Spend the room that is left: the exchange that gains most, until none fits."""
    taken = taken.copy()
    while True:
        current_U = np.full(len(program.units), -1)
        current_U[program.unit[taken]] = taken
        now_N = current_U[program.unit]
        gain_N = program.loss[now_N] - program.loss
        extra_LN = program.cost - program.cost[:, now_N]
        room_L = room_left(program, taken)
        fits_N = (now_N >= 0) & (program.holds == program.holds[now_N])
        fits_N &= (gain_N > 0) & (extra_LN <= room_L[:, None]).all(axis=0)
        if not fits_N.any():
            return taken
        best = int(np.where(fits_N, gain_N, -np.inf).argmax())
        taken[taken == now_N[best]] = best
