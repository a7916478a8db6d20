"""Finds the best plan of a program: a mixed-integer program on HiGHS, of few columns.

The Lagrangian bound first removes the columns that no better plan can have (exactly, usually nine
tenths of them).  The search stops at a gap, or after a number of nodes; never by time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

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
    decided = _decided_once(program, open_columns)
    bound_L = program.bound.copy()
    for _ in range(ATTEMPTS):
        limits = [_row(c, b) for c, b in zip(program.cost[:, open_columns], bound_L, strict=True)]
        with _quiet():
            result = milp(
                loss_N * scale,
                constraints=[decided, *limits],
                integrality=np.ones(len(open_columns), dtype=np.int64),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": RELATIVE_GAP, "node_limit": NODES},
            )
        if result.x is None:
            return None
        taken: Array = open_columns[result.x > 0.5]
        over_L = np.maximum(-room_left(program, taken), 0)
        if not over_L.any():
            return taken
        bound_L = bound_L - over_L
    return None


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
