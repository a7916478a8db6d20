"""Finds the best plan of a program: a mixed-integer program on HiGHS, of few columns.

The Lagrangian bound first removes the columns that no better plan can have (exactly, usually nine
tenths of them).  The search stops at a gap, or after a number of nodes; never by time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, hstack, identity

from blockwright.plan.bound import bound_program, loss_of, room_left
from blockwright.plan.program import Array, Program

RELATIVE_GAP = 1e-6
"""A plan's loss is within this fraction of the least possible, unless NODES ended the search."""
NODES = 500
"""Branch-and-bound nodes after which the best plan found is taken, usually the best there is but
unproven.  Rare: byte counts without a common divisor."""
OBJECTIVE = 1e3
"""The losses are scaled so that a known plan has this one: HiGHS works to absolute 1e-6."""
ROW = 1e6
"""Largest right-hand side of a limit's row; HiGHS keeps rows to absolute 1e-6."""
ATTEMPTS = 4
"""Tries with a tightened limit, should rounding have let the solver over it by a byte."""


def best_columns(program: Program) -> Array | None:
    """Indices of the columns of the best plan; None when no plan keeps the limits."""
    bounded = bound_program(program)
    best = bounded.incumbent
    bound, slack_N = bounded.relaxed.bound, bounded.relaxed.slack
    open_N = np.isfinite(slack_N)
    if best is not None:
        gap = loss_of(program, best) - bound
        if gap <= RELATIVE_GAP * abs(loss_of(program, best)):
            return best
        open_N &= slack_N <= gap * (1 + 1e-9) + 1e-12 * abs(bound)
    found = _search(program, np.flatnonzero(open_N), best)
    options = [taken for taken in (best, found) if taken is not None]
    return min(options, key=lambda taken: _rank(program, taken), default=None)


def _rank(program: Program, taken: Array) -> tuple[float, tuple[int, ...]]:
    return loss_of(program, taken), tuple(program.cost[:, taken].sum(axis=1).tolist())


def _search(program: Program, open_columns: Array, known: Array | None) -> Array | None:
    """The best plan of these columns that HiGHS finds, its costs counted exactly."""
    loss_N = program.loss[open_columns]
    usual = loss_of(program, known) if known is not None else float(np.median(np.abs(loss_N)))
    scale = OBJECTIVE / abs(usual) if usual else 1.0
    pair_P2, pair_loss_P = _open_pairs(program, open_columns)
    begins = len(program.drops) if program.one_run else 0
    spare = len(pair_P2) + begins
    fixed = [_wider(_decided_once(program, open_columns), spare)]
    both = _both_or_not(pair_P2, pair_loss_P, len(open_columns)) if len(pair_P2) else []
    fixed += [_wider(rows, begins) for rows in both]
    dropped = (program.drops[:, None] == open_columns[None]).astype(float)
    fixed += _one_run(dropped, len(pair_P2)) if begins else []
    fixed += [_wider(_one_stays(dropped), spare)] if len(dropped) else []
    bound_L = program.bound.copy()
    for _ in range(ATTEMPTS):
        limits = [_row(c, b) for c, b in zip(program.cost[:, open_columns], bound_L, strict=True)]
        with _quiet():
            result = milp(
                np.concatenate([loss_N, pair_loss_P, np.zeros(begins)]) * scale,
                constraints=[*fixed, *(_wider(limit, spare) for limit in limits)],
                integrality=np.ones(len(open_columns) + spare, dtype=np.int64),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": RELATIVE_GAP, "node_limit": NODES},
            )
        if result.x is None:
            return None
        taken: Array = open_columns[result.x[: len(open_columns)] > 0.5]
        over_L = np.maximum(-room_left(program, taken), 0)
        if not over_L.any():
            return taken
        bound_L = bound_L - over_L
    return None


def _open_pairs(program: Program, open_columns: Array) -> tuple[Array, Array]:
    """Pairs of open columns, as places among these, and their losses."""
    place_N = np.full(len(program.loss), -1)
    place_N[open_columns] = np.arange(len(open_columns))
    pair_P2 = place_N[program.pair]
    open_P = (pair_P2 >= 0).all(axis=1)
    return pair_P2[open_P], program.pair_loss[open_P]


def _both_or_not(pair_P2: Array, loss_P: Array, columns: int) -> list[LinearConstraint]:
    """One more variable per pair: 1 when both columns are chosen, else 0."""
    pairs = len(pair_P2)
    chosen = csr_matrix(
        (np.ones(2 * pairs), (np.repeat(np.arange(pairs), 2), pair_P2.ravel())),
        shape=(pairs, columns),
    )
    both = -identity(pairs, format="csr")
    least = LinearConstraint(hstack([chosen, both]), -np.inf, 1)
    most = LinearConstraint(hstack([chosen, 2 * both]), 0, np.inf)
    return [least, most]


def _one_stays(dropped_BN: Array) -> LinearConstraint:
    """Not every block is dropped; ``dropped_BN``: 1 where a column drops a block."""
    return LinearConstraint(csr_matrix(dropped_BN.sum(0)[None]), 0, len(dropped_BN) - 1)


def _one_run(dropped_BN: Array, before: int) -> list[LinearConstraint]:
    """One more variable per block, behind ``before`` others: 1 where a run of drops begins; at most
    one does.
    """
    blocks, width = len(dropped_BN), dropped_BN.shape[1] + before
    grows = np.diff(dropped_BN, axis=0, prepend=0.0)
    rows = hstack([csr_matrix(grows), csr_matrix((blocks, before)), -identity(blocks)])
    begun = np.concatenate([np.zeros(width), np.ones(blocks)])
    return [
        LinearConstraint(csr_matrix(rows), -np.inf, 0),
        LinearConstraint(csr_matrix(begun[None]), 0, 1),
    ]


def _wider(rows: LinearConstraint, spare: int) -> LinearConstraint:
    """The same rows over so many more variables."""
    if not spare:
        return rows
    matrix: Any = rows.A
    empty = csr_matrix(np.zeros((matrix.shape[0], spare)))
    return LinearConstraint(hstack([matrix, empty]), rows.lb, rows.ub)


def _row(cost_N: Array, bound: int) -> LinearConstraint:
    """A limit in units of the costs' common divisor, which keeps the row in small whole numbers."""
    unit = max(int(np.gcd.reduce(cost_N)), 1)
    limit = bound // unit
    shrink = min(1.0, ROW / max(abs(limit), 1))
    return LinearConstraint(csr_matrix(cost_N[None] / unit * shrink), -np.inf, limit * shrink)


def _decided_once(program: Program, open_columns: Array) -> LinearConstraint:
    """One row per unit: its own columns and those that hold it sum to one."""
    rows, places = [], []
    below = _ancestors(program)
    unit_N, holds_N = program.unit[open_columns], program.holds[open_columns]
    holding: dict[int, list[int]] = {}
    for place, (unit, holds) in enumerate(zip(unit_N.tolist(), holds_N.tolist(), strict=True)):
        rows.append(unit)
        places.append(place)
        if holds:
            holding.setdefault(unit, []).append(place)
    for unit, above in enumerate(below):
        for ancestor in above:
            rows += [unit] * len(holding.get(ancestor, []))
            places += holding.get(ancestor, [])
    shape = (len(program.units), len(open_columns))
    return LinearConstraint(csr_matrix((np.ones(len(rows)), (rows, places)), shape=shape), 1, 1)


def _ancestors(program: Program) -> list[list[int]]:
    """All units that can contain a unit, by unit."""
    found = []
    for unit in range(len(program.units)):
        above, parent = [], int(program.parent[unit])
        while parent >= 0:
            above.append(parent)
            parent = int(program.parent[parent])
        found.append(above)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints a line of its own from C, past ``sys.stdout``; stdout is for results."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
