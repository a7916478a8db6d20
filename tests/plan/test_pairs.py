"""Pairs of choices that cost something together, against exhaustive search."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from blockwright.library.problems import problem_from_json, problem_to_json
from blockwright.plan import corrected, plan_of, solve
from blockwright.plan.limits import budget_bytes, cost_of
from blockwright.types import Budget, Option, Pair, Problem
from tests.plan.problems import option, problem_of


def blocks_problem(seed: int, sign: float) -> Problem:
    """Five blocks of two linears; neighbours dropped together cost more (or less, ``sign`` < 0)."""
    draw = random.Random(seed)
    options, pairs = [], []
    for block in range(5):
        inner = tuple(f"layers.{block}.{name}" for name in ("q", "o"))
        for site in inner:
            options.append(option(site, "keep", 200, 0.0))
            options.append(option(site, "int4", draw.randint(40, 60), draw.uniform(0.01, 0.2)))
        options.append(option(f"layers.{block}", "keep", 0, 0.0, weights=0))
        loss = draw.uniform(0.05, 0.5)
        options.append(option(f"layers.{block}", "drop", 0, loss, weights=0, contains=inner))
    for block in range(4):
        both = (f"layers.{block}", f"layers.{block + 1}")
        together = sign * draw.uniform(0.0, 0.1 if sign < 0 else 1.0)
        pairs.append(Pair(sites=both, candidates=("drop", "drop"), loss=together))
    return replace(problem_of(options), pairs=tuple(pairs))


def plans_of(problem: Problem) -> list[tuple[Option, ...]]:
    """Every plan: each block dropped, or its two linears decided."""
    found = {(o.site, o.candidate): o for o in problem.options}
    by_block: list[list[tuple[Option, ...]]] = []
    for block in range(5):
        site = f"layers.{block}"
        choices: list[tuple[Option, ...]] = [(found[site, "drop"],)]
        for pair in itertools.product(("keep", "int4"), repeat=2):
            linears = (found[f"{site}.{n}", c] for n, c in zip(("q", "o"), pair, strict=True))
            choices.append((found[site, "keep"], *linears))
        by_block.append(choices)
    return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*by_block)]


def total_loss(problem: Problem, chosen: tuple[Option, ...]) -> float:
    taken = {(item.site, item.candidate) for item in chosen}
    extra = sum(
        pair.loss
        for pair in problem.pairs
        if all(item in taken for item in zip(pair.sites, pair.candidates, strict=True))
    )
    return sum(item.loss for item in chosen) + extra


@pytest.mark.parametrize(("seed", "sign"), [*itertools.product(range(6), (1.0, -1.0))])
def test_the_solver_finds_the_least_loss_with_pairs(seed: int, sign: float) -> None:
    problem = blocks_problem(seed, sign)
    for ratio in (0.15, 0.3, 0.5):
        budget = Budget(ratio=ratio)
        limit = budget_bytes(problem, budget)
        least = min(
            total_loss(problem, chosen)
            for chosen in plans_of(problem)
            if sum(cost_of(item, budget) for item in chosen) <= limit
        )
        assert solve(problem, budget).loss == pytest.approx(least, rel=1e-5)


def test_pairs_change_which_blocks_are_dropped() -> None:
    """The two cheapest blocks are neighbours; together they are not cheap."""
    options = []
    for block, loss in enumerate((0.1, 0.11, 0.5, 0.12)):
        site = f"layers.{block}"
        options.append(option(f"{site}.q", "keep", 100, 0.0))
        options.append(option(site, "keep", 0, 0.0, weights=0))
        options.append(option(site, "drop", 0, loss, weights=0, contains=(f"{site}.q",)))
    alone = problem_of(options, fixed_bytes=0)
    pair = Pair(sites=("layers.0", "layers.1"), candidates=("drop", "drop"), loss=1.0)
    together = replace(alone, pairs=(pair,))

    def dropped(problem: Problem) -> list[str]:
        choices = solve(problem, Budget(ratio=0.5)).choices
        return [site for site, choice in choices.items() if choice.candidate == "drop"]

    assert dropped(alone) == ["layers.0", "layers.1"]
    assert dropped(together) == ["layers.0", "layers.3"]


def test_a_plans_loss_counts_its_pairs_and_corrections_scale_them() -> None:
    problem = blocks_problem(0, 1.0)
    chosen = [o for o in problem.options if o.candidate == "drop" and o.site < "layers.2"]
    plan = plan_of(problem, chosen, budget="")
    assert plan.loss == pytest.approx(sum(o.loss for o in chosen) + problem.pairs[0].loss)
    assert corrected(problem, {"drop": 2.0}).pairs[0].loss == 2 * problem.pairs[0].loss


def test_pairs_are_kept_in_the_library() -> None:
    problem = blocks_problem(1, 1.0)
    assert problem_from_json(problem_to_json(problem), "here") == problem
