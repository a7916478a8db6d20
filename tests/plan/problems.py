"""Problems to solve, and the exhaustive search that knows their answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from blockwright.plan.limits import budget_bytes, cost_of
from blockwright.types import Budget, Option, Problem

SHAPES = ((2048, 2048), (256, 2048), (2048, 2048), (5632, 2048), (2048, 5632))


def problem_of(options: list[Option], *, fixed_bytes: int = 100) -> Problem:
    """A problem whose original is ``keep`` everywhere."""
    kept = sum(option.stored_bytes for option in options if option.candidate == "keep")
    weights = {option.site: option.weights for option in options}
    return Problem(
        model="models/tiny",
        fingerprint="f1",
        statistics="s1",
        options=tuple(options),
        linear_weights=sum(weights.values()),
        fixed_bytes=fixed_bytes,
        original_bytes=kept + fixed_bytes,
    )


def option(
    site: str,
    candidate: str,
    stored_bytes: int,
    loss: float,
    *,
    weights: int = 100,
    contains: tuple[str, ...] = (),
    tie: str = "",
    other_bytes: int = 0,
) -> Option:
    return Option(
        site=site,
        candidate=candidate,
        weights=weights,
        stored_bytes=stored_bytes,
        loss=loss,
        key="" if candidate in ("keep", "drop") else f"{site}/{candidate}",
        contains=contains,
        tie=tie,
        other_bytes=other_bytes,
    )


def all_choices(problem: Problem) -> Iterator[tuple[Option, ...]]:
    """Every way to decide each site once, written down without the solver's notions."""
    offered: dict[str, list[Option]] = {}
    for item in problem.options:
        offered.setdefault(item.site, []).append(item)
    choices: list[list[Option | None]] = [[*found, None] for found in offered.values()]
    for picked in itertools.product(*choices):
        chosen = tuple(item for item in picked if item is not None)
        if _decided_once(chosen, offered) and _tied(chosen):
            yield chosen


def _decided_once(chosen: tuple[Option, ...], offered: dict[str, list[Option]]) -> bool:
    decided = [site for item in chosen for site in (item.site, *item.contains)]
    needed = {site for site, found in offered.items() if not all(o.contains for o in found)}
    return len(set(decided)) == len(decided) and needed <= set(decided)


def _tied(chosen: tuple[Option, ...]) -> bool:
    candidates: dict[str, set[str]] = {}
    for item in chosen:
        if item.tie:
            candidates.setdefault(item.tie, set()).add(item.candidate)
    return all(len(found) == 1 for found in candidates.values())


def cheapest_within(problem: Problem, budget: Budget) -> float | None:
    """Least loss of all plans under a budget; None when none fits."""
    limit = budget_bytes(problem, budget)
    losses = [
        sum(item.loss for item in chosen)
        for chosen in all_choices(problem)
        if sum(cost_of(item, budget) for item in chosen) <= limit
    ]
    return min(losses, default=None)


def realistic_problem(*, sites: int, candidates: int, seed: int, scale: float = 1.0) -> Problem:
    """Integer groups on Llama-shaped linears; importance varies over orders of magnitude."""
    draw = random.Random(seed)
    grids = [(b, g, a) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128, 0) for a in (0, 1)]
    offered = [grids[i * (len(grids) - 1) // (candidates - 2)] for i in range(candidates - 1)]
    options = []
    for index in range(sites):
        rows, columns = SHAPES[index % len(SHAPES)]
        weights, site = rows * columns, f"model.layers.{index // 5}.linear{index % 5}"
        options.append(option(site, "keep", 2 * weights, 0.0, weights=weights))
        importance = scale * draw.lognormvariate(0, 2) * weights / 4e6
        for bits, group, asymmetric in offered:
            scales = rows * (columns // (group or columns)) * 2 * (1 + asymmetric)
            coarse = {32: 1.0, 64: 1.3, 128: 1.6, 0: 2.5}[group] * (1.0 if asymmetric else 1.3)
            loss = importance * 4.0**-bits * coarse * draw.lognormvariate(0, 0.2)
            name = f"int{bits}-{f'g{group}' if group else 'row'}{'' if asymmetric else '-sym'}:gptq"
            options.append(option(site, name, weights * bits // 8 + scales, loss, weights=weights))
    return problem_of(options, fixed_bytes=5000)


def least_by_table(problem: Problem, limit: int) -> float:
    """Least loss of plain sites within ``limit`` bytes, by a table over all numbers of bytes."""
    offered: dict[str, list[Option]] = {}
    for item in problem.options:
        offered.setdefault(item.site, []).append(item)
    least = [0.0] * (limit + 1)
    for found in offered.values():
        least = [
            min(
                (least[room - o.stored_bytes] + o.loss for o in found if o.stored_bytes <= room),
                default=float("inf"),
            )
            for room in range(limit + 1)
        ]
    return least[limit]


def scattered_problem(*, sites: int, candidates: int, seed: int) -> Problem:
    """Byte counts without order or common divisor, losses over three orders of magnitude."""
    draw = random.Random(seed)
    options = []
    for site in range(sites):
        options.append(option(f"s{site}", "keep", 200, 0.0))
        options += [
            option(f"s{site}", f"c{index}", draw.randint(11, 180), 10 ** draw.uniform(-2, 1))
            for index in range(candidates - 1)
        ]
    return problem_of(options)
