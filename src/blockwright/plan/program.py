"""The plan as a program of binaries: columns to choose, units to decide, limits to keep.

A *unit* is a site, or the sites of one tie.  A *column* is one candidate for a unit.  A column may
contain other units (a dropped block, one decision for q, k and v); then these are not decided.
Containment nests, so the units form trees:

    block ── keep ──> group ── keep ──> linear, linear, linear
          └─ drop           └─ int4:awq (holds all three)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockwright.errors import PlanError
from blockwright.plan.limits import Limit, file_bytes
from blockwright.types import Option, Pair, Problem

Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One binary: the options that are chosen together; none where a unit is left to its parts."""

    unit: str
    options: tuple[Option, ...]
    costs: tuple[int, ...]
    """By limit."""

    @property
    def loss(self) -> float:
        return sum(option.loss for option in self.options)

    @property
    def holds(self) -> bool:
        """Whether it takes the place of other units."""
        return any(option.contains for option in self.options)

    @property
    def preference(self) -> tuple[float, tuple[int, ...], bool, int, str]:
        """Which of two columns is better when the rest is equal; the least wins."""
        candidate = self.options[0].candidate if self.options else ""
        size = sum(file_bytes(option) for option in self.options)
        return self.loss, self.costs, candidate != "keep", size, candidate


@dataclass(frozen=True)
class Program:
    """N columns sorted by unit, U units in natural order of their names, L limits."""

    columns: tuple[Column, ...]
    units: tuple[str, ...]
    unit: Array
    """[N] index of the column's unit."""
    loss: Array
    """[N]"""
    cost: Array
    """[L, N]"""
    bound: Array
    """[L]"""
    holds: Array
    """[N] True where a column takes the place of the units below its own."""
    parent: Array
    """[U] index of the smallest unit that can contain it; -1 at a root."""
    depth: Array
    """[U] how many units can contain it."""
    pair: Array
    """[P, 2] columns that cost something together."""
    pair_loss: Array
    """[P]"""
    drops: Array
    """[B] columns that drop blocks, in order; -1 for a block that cannot be dropped.  Not all are
    chosen.
    """
    one_run: bool
    """Whether only neighbours among them are chosen."""


def site_order(site: str) -> tuple[str | int, ...]:
    """Sort key that puts block 2 before block 10."""
    parts = re.split(r"(\d+)", site)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def build_program(problem: Problem, limits: Sequence[Limit]) -> Program:
    """Options whose cost under a limit is not known are left out.

    Raises ``PlanError`` when ties or containment contradict each other.
    """
    options = [o for o in problem.options if all(limit.cost(o) is not None for limit in limits)]
    unit_of = units_by_site(options)
    columns = columns_of(options, unit_of, limits)
    contained = contained_units(columns, unit_of)
    units = tuple(sorted({column.unit for column in columns}, key=site_order))
    index = {unit: position for position, unit in enumerate(units)}
    bound = {site for pair in problem.pairs for site in pair.sites}.union(problem.blocks)
    paired = {unit_of[site] for site in bound if site in unit_of}
    compared = without_dominated(column for column in columns if column.unit not in paired)
    compared += [column for column in columns if column.unit in paired]
    kept = sorted(compared, key=lambda c: (index[c.unit], c.preference))
    parent, depth = _nest(units, contained)
    pairs, pair_loss = _paired_columns(problem.pairs, kept)
    return Program(
        columns=tuple(kept),
        units=units,
        unit=np.array([index[column.unit] for column in kept]),
        loss=np.array([column.loss for column in kept]),
        cost=np.array([column.costs for column in kept], dtype=np.int64).T,
        bound=np.array([limit.bound for limit in limits], dtype=np.int64),
        holds=np.array([column.holds for column in kept]),
        parent=parent,
        depth=depth,
        pair=pairs,
        pair_loss=pair_loss,
        drops=_dropping_columns(problem.blocks, kept),
        one_run=problem.one_run,
    )


def _paired_columns(pairs: Iterable[Pair], columns: Sequence[Column]) -> tuple[Array, Array]:
    """Pairs whose choices are both on offer, as columns [P, 2], and their losses [P]."""
    place = {
        (option.site, option.candidate): index
        for index, column in enumerate(columns)
        for option in column.options
    }
    found = []
    for pair in pairs:
        first, second = zip(pair.sites, pair.candidates, strict=True)
        if first in place and second in place:
            found.append((place[first], place[second], pair.loss))
    columns_P2 = np.array([item[:2] for item in found], dtype=np.int64).reshape(-1, 2)
    return columns_P2, np.array([item[2] for item in found])


def _dropping_columns(blocks: Sequence[str], columns: Sequence[Column]) -> Array:
    """The columns that drop these blocks."""
    place = {
        option.site: index
        for index, column in enumerate(columns)
        for option in column.options
        if option.candidate == "drop"
    }
    return np.array([place.get(block, -1) for block in blocks], dtype=np.int64)


def units_by_site(options: Iterable[Option]) -> dict[str, str]:
    """Site -> its unit: the tie (marked, so that it is no site's name) or the site itself."""
    found: dict[str, str] = {}
    for option in options:
        unit = f"tie {option.tie}" if option.tie else option.site
        if found.setdefault(option.site, unit) != unit:
            raise PlanError(f"the options of {option.site} name different ties")
    return found


def columns_of(
    options: Iterable[Option], unit_of: Mapping[str, str], limits: Sequence[Limit]
) -> list[Column]:
    """Options merged by tie; a candidate that a tied site lacks is offered to none of them.

    A unit whose every option contains others may be left to its parts: an empty column.
    """
    by_choice: dict[tuple[str, str], dict[str, Option]] = defaultdict(dict)
    for option in options:
        if option.site in by_choice[unit_of[option.site], option.candidate]:
            raise PlanError(f"{option.candidate} is offered twice at {option.site}")
        by_choice[unit_of[option.site], option.candidate][option.site] = option
    sites: dict[str, set[str]] = defaultdict(set)
    for site, unit in unit_of.items():
        sites[unit].add(site)
    by_unit: dict[str, list[Column]] = {unit: [] for unit in sites}
    for (unit, _), found in by_choice.items():
        if set(found) == sites[unit]:
            together = tuple(found[site] for site in sorted(found, key=site_order))
            costs = tuple(sum(limit.cost(o) or 0 for o in together) for limit in limits)
            by_unit[unit].append(Column(unit, together, costs))
    for unit, columns in by_unit.items():
        if not columns:
            raise PlanError(f"the sites of {unit} have no candidate in common")
        if all(column.holds for column in columns):
            columns.append(Column(unit, (), (0,) * len(limits)))
    return [column for columns in by_unit.values() for column in columns]


def contained_units(
    columns: Collection[Column], unit_of: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """Unit -> the units that its holding columns contain; all of them contain the same."""
    members: dict[str, set[str]] = defaultdict(set)
    for site, unit in unit_of.items():
        members[unit].add(site)
    found: dict[str, frozenset[str]] = {}
    for column in columns:
        sites = {site for option in column.options for site in option.contains}
        if not sites:
            continue
        if unknown := sorted(sites - unit_of.keys()):
            raise PlanError(f"{column.unit} contains {unknown[0]}, which has no options")
        units = frozenset(unit_of[site] for site in sites)
        if split := [unit for unit in units if not members[unit] <= sites]:
            raise PlanError(
                f"{column.unit} contains a part of {min(split)}, which is decided as one"
            )
        if found.setdefault(column.unit, units) != units:
            raise PlanError(f"the options of {column.unit} contain different sites")
    return found


def without_dominated(columns: Iterable[Column]) -> list[Column]:
    """Columns that no other of their unit beats or equals in loss and in every cost.

    Of columns that are equal in all of these, the one of least ``preference`` stays.
    """
    by_kind: dict[tuple[str, bool], list[Column]] = defaultdict(list)
    for column in columns:
        by_kind[column.unit, column.holds].append(column)
    kept: list[Column] = []
    for group in by_kind.values():
        best: list[Column] = []
        for column in sorted(group, key=lambda column: column.preference):
            if not any(_at_most(other.costs, column.costs) for other in best):
                best.append(column)
        kept += best
    return kept


def _at_most(costs: tuple[int, ...], others: tuple[int, ...]) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))


def _nest(units: Sequence[str], contained: Mapping[str, frozenset[str]]) -> tuple[Array, Array]:
    """Parent and depth of every unit; ``PlanError`` where containment overlaps without nesting."""
    index = {unit: position for position, unit in enumerate(units)}
    parent_U = np.full(len(units), -1)
    depth_U = np.zeros(len(units), dtype=int)
    for unit, inner in sorted(contained.items(), key=lambda item: (len(item[1]), item[0])):
        for name in inner:
            depth_U[index[name]] += 1
            if parent_U[index[name]] < 0:
                parent_U[index[name]] = index[unit]
    for unit, position in index.items():
        parent = parent_U[position]
        if parent >= 0 and depth_U[position] != depth_U[parent] + 1:
            raise PlanError(f"{unit} is contained by units that do not nest")
    return parent_U, depth_U
