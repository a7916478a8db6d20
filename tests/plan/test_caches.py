"""KV caches in plans: their memory grows with the context, and goes with a dropped block."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from blockwright.plan import solve, uniform_plans
from blockwright.types import Budget, CacheGrowth, Memory, Option, Problem, cache_site

BLOCKS = ("layers.0", "layers.1", "layers.2")
LOSSES = {"keep": 0.0, "int8": 0.01, "int4": 0.2}
PAGE_BYTES = {"int8": 130, "int4": 70}
CONTEXT = 100


def growth(page_bytes: int) -> CacheGrowth:
    return CacheGrowth(token_bytes=16, window_tokens=16, page_tokens=16, page_bytes=page_bytes)


def options_of(index: int, block: str, *, drop: bool) -> list[Option]:
    """One linear and one cache; later blocks feel more."""
    bare = Option(site=block, candidate="keep", weights=0, stored_bytes=0, loss=0, resident_bytes=0)
    linear = replace(bare, site=f"{block}.linear", weights=1000)
    cache, weight = replace(bare, site=cache_site(block)), 1 + index
    found = [replace(cache, candidate=n, loss=loss * weight) for n, loss in LOSSES.items()]
    for name, size in (("keep", 2000), ("int8", 1000)):
        loss = 0.05 * weight * (name != "keep")
        found.append(
            replace(linear, candidate=name, stored_bytes=size, resident_bytes=size, loss=loss)
        )
    if drop:
        held = (linear.site, cache.site)
        found += [bare, replace(bare, candidate="drop", loss=0.3, contains=held)]
    return found


def problem(drop: bool = False) -> Problem:
    """Three blocks."""
    options = [o for index, b in enumerate(BLOCKS) for o in options_of(index, b, drop=drop)]
    quantized = {name: growth(size) for name, size in PAGE_BYTES.items()}
    memory = Memory(
        fixed_bytes=10,
        activation_bytes=20,
        activation_tokens=1,
        caches={block: CacheGrowth(token_bytes=16) for block in BLOCKS},
        quantized=dict.fromkeys(BLOCKS, quantized),
    )
    return Problem(
        model="m",
        fingerprint="f",
        statistics="s",
        options=tuple(options),
        linear_weights=3000,
        fixed_bytes=0,
        original_bytes=6000,
        memory=memory,
    )


def cache_bytes(name: str) -> int:
    """Of one block at the context: five pages of 16 tokens and 20 exact ones."""
    return 16 * CONTEXT if name == "keep" else 5 * PAGE_BYTES[name] + 20 * 16


def exhaustive(ram: int, drop: bool) -> float:
    """Least loss of all plans within a memory, by trying them."""
    best = float("inf")
    ways = [*product(("keep", "int8"), LOSSES), *([("drop", "")] if drop else [])]
    for plan in product(ways, repeat=3):
        loss, held = 0.0, 10 + 20 + 16 * CONTEXT  # one cache is copied
        for index, (linear, cache) in enumerate(plan):
            if linear == "drop":
                loss += 0.3
                continue
            held += {"keep": 2000, "int8": 1000}[linear] + cache_bytes(cache)
            loss += (1 + index) * (0.05 * (linear != "keep") + LOSSES[cache])
        if held <= ram:
            best = min(best, loss)
    return best


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("ram", [7_000, 7_800, 9_000, 10_000, 11_500])
def test_the_best_mix_of_weights_and_caches_is_found(ram: int, drop: bool) -> None:
    plan = solve(problem(drop), Budget(ram_bytes=ram, context=CONTEXT))
    assert plan.loss == pytest.approx(exhaustive(ram, drop))
    assert plan.ram_bytes is not None
    assert plan.ram_bytes <= ram


def test_a_dropped_block_takes_its_cache_along() -> None:
    plan = solve(problem(drop=True), Budget(ram_bytes=6_000, context=CONTEXT))
    dropped = [
        block
        for block in BLOCKS
        if plan.choices.get(block) and plan.choices[block].candidate == "drop"
    ]
    assert dropped
    assert not any(cache_site(block) in plan.choices for block in dropped)
    assert plan.loss == pytest.approx(exhaustive(6_000, drop=True))


def test_uniform_plans_try_one_format_for_all_caches() -> None:
    names = {
        plan.name for plan in uniform_plans(problem(), Budget(ram_bytes=11_500, context=CONTEXT))
    }
    assert names == {"uniform int8" + end for end in ("", ", KV cache int8", ", KV cache int4")}


def test_longer_contexts_gain_more() -> None:
    memory = problem().memory
    assert memory is not None
    changes = [memory.changed_by_cache(BLOCKS[0], "int4", context) for context in (16, 31, 32, 320)]
    assert changes == [0, 0, 70 - 16 * 16, 19 * (70 - 16 * 16)]
    assert (
        Memory.from_json(
            {
                "fixed_bytes": 10,
                "activation_bytes": 20,
                "activation_tokens": 1,
                "caches": {block: vars(growth) for block, growth in memory.caches.items()},
                "quantized": {
                    block: {name: vars(growth) for name, growth in found.items()}
                    for block, found in memory.quantized.items()
                },
            }
        )
        == memory
    )
