"""Pairs of choices that cost something together, against exhaustive search."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from blockwright.library.problems import problem_from_json, problem_to_json
from blockwright.plan import corrected, plan_of, solve
from blockwright.plan.limits import budget_bytes, cost_of
from blockwright.types import Budget, Option, Pair, Plan, Problem
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


@pytest.mark.parametrize(("seed", "sign"), [*itertools.product(range(6), (1.0, -1.0))])
def test_the_solver_finds_the_best_run_of_neighbours(seed: int, sign: float) -> None:
    blocks = tuple(f"layers.{block}" for block in range(5))
    problem = replace(blocks_problem(seed, sign), blocks=blocks, one_run=True)
    for ratio in (0.15, 0.3, 0.5):
        budget = Budget(ratio=ratio)
        limit = budget_bytes(problem, budget)
        possible = [
            chosen
            for chosen in plans_of(problem)
            if sum(cost_of(item, budget) for item in chosen) <= limit and is_run(chosen)
        ]
        plan = solve(problem, budget)
        assert plan.loss == pytest.approx(
            min(total_loss(problem, chosen) for chosen in possible), rel=1e-5
        )
        assert is_run(tuple(o for o in problem.options if taken(plan, o)))


def taken(plan: Plan, option: Option) -> bool:
    choice = plan.choices.get(option.site)
    return choice is not None and choice.candidate == option.candidate


def is_run(chosen: tuple[Option, ...]) -> bool:
    """Whether the dropped blocks follow each other, and one stays."""
    at = sorted(int(item.site.rpartition(".")[2]) for item in chosen if item.candidate == "drop")
    return len(at) < 5 and (not at or at == list(range(at[0], at[-1] + 1)))


def test_a_block_that_stays_divides_a_run() -> None:
    """Blocks 0 and 2 are cheap, block 1 cannot be dropped: not both go."""
    options = []
    for block in range(3):
        site = f"layers.{block}"
        options.append(option(f"{site}.q", "keep", 100, 0.0))
        options.append(option(f"{site}.q", "int4", 60, 1.0))
        if block != 1:
            options.append(option(site, "keep", 0, 0.0, weights=0))
            options.append(option(site, "drop", 0, 0.1, weights=0, contains=(f"{site}.q",)))
    problem = problem_of(options, fixed_bytes=0)
    blocks = tuple(f"layers.{block}" for block in range(3))
    budget = Budget(size_bytes=200)

    def dropped(problem: Problem) -> int:
        choices = solve(problem, budget).choices.values()
        return sum(choice.candidate == "drop" for choice in choices)

    in_a_run = replace(problem, blocks=blocks, one_run=True)
    assert dropped(in_a_run) == 1
    assert solve(in_a_run, Budget(size_bytes=150)).loss > 1
    assert solve(problem, Budget(size_bytes=150)).loss < 1


def test_one_block_stays() -> None:
    """Pairs can make dropping everything look cheapest."""
    problem = blocks_problem(0, -1.0)
    pairs = tuple(replace(pair, loss=-1.0) for pair in problem.pairs)
    problem = replace(problem, pairs=pairs)
    blocks = tuple(f"layers.{block}" for block in range(5))

    def kept(problem: Problem) -> int:
        choices = solve(problem, Budget(ratio=0.9)).choices
        return sum(choices[block].candidate == "keep" for block in blocks)

    assert kept(problem) == 0
    assert kept(replace(problem, blocks=blocks)) == 1


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
