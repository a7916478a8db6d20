"""Claims about policies for video, on grids and over denoising steps (one head, 64 wide)."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from blockwright.attention import Context, Layout, Policy, attend
from blockwright.attention.budget import meet_density
from blockwright.attention.metrics import density, mass_recall
from blockwright.attention.planted import PRESETS, Planted, drifted, plant, plant_grid
from blockwright.attention.policies.adaspa import AdaSpa
from blockwright.attention.policies.mean import Mean
from blockwright.attention.policies.oracle import Oracle
from blockwright.attention.policies.vmoba import Vmoba
from tests.claims.ledger import Grade, claim

SCALE, GRID, FAR = 0.125, (8, 16, 16), float("inf")
SHAPES = Vmoba(keep=5, slices="1x8x16", columns="8x4x4", boxes="2x8x8")


def around(tokens: int, **more: object) -> Context:
    context = Context(layout=Layout.plain(tokens, tokens, causal=False), scale=SCALE)
    return replace(context, **more)  # type: ignore[arg-type]


def recall(policy: Policy, data: Planted, context: Context) -> float:
    choice = policy.choose(data.q, data.k, data.v, context)
    return mass_recall(data.q, data.k, choice, context)


# -- VMoBA


@cache
def shape_recalls(*reach: float) -> list[float]:
    """Recall of slices, columns and boxes, 5 of 16 blocks of 128 tokens."""
    data = plant_grid(GRID, (reach[0], reach[1], reach[2]), level=8)
    return [recall(SHAPES, data, around(2048, grid=GRID, layer=layer)) for layer in range(3)]


@claim(
    method="vmoba",
    family="attention",
    paper=Vmoba.paper,
    says="slices of frames suit what stays in a frame, columns what stays in its place",
    measures="recall of the shape that suits above the other's, 5 of 16 blocks, grid 8x16x16",
    at_least=0.3,
    grade=Grade.FIRM,
)
def test_each_shape_suits_its_data() -> Iterator[float]:
    within_frame, in_place = shape_recalls(0.5, FAR, FAR), shape_recalls(FAR, 1.0, 1.0)
    yield within_frame[0] - within_frame[1]
    yield in_place[1] - in_place[0]


@claim(
    method="vmoba",
    family="attention",
    paper=Vmoba.paper,
    says="what is local in all axes is found by every shape: cycling costs nothing",
    measures="best less worst recall of the three shapes, 5 of 16 blocks, grid 8x16x16",
    at_most=0.05,
    grade=Grade.FIRM,
)
def test_local_attention_is_found_by_every_shape() -> float:
    found = shape_recalls(1.0, 2.0, 2.0)
    return max(found) - min(found)


TOKENS, RUN = 2560, 64


def wanting(others: Tensor, scale: Tensor) -> Planted:
    """Queries [N] that want runs of keys, bool [N, runs], ``scale`` [N] times as loud."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(64, TOKENS // RUN, generator=generator)).Q.T
    owner = torch.arange(TOKENS) // RUN
    noise = 0.3 * torch.randn(2, TOKENS, 64, generator=generator)
    q = 8.0 * scale[:, None] * (others.float() @ directions) + noise[1]
    k = 8.0 * directions[owner] + noise[0]
    v = torch.randn(TOKENS, 64, generator=generator)
    return Planted(q=q[None, None], k=k[None, None], v=v[None, None])


def drawn_runs(count: int) -> Tensor:
    """bool [N, runs]: so many runs of every query."""
    draw = torch.rand(TOKENS, TOKENS // RUN, generator=torch.Generator().manual_seed(1))
    return torch.zeros(draw.shape, dtype=torch.bool).scatter_(1, draw.topk(count).indices, True)


def gain_of_a_budget_for_the_head(data: Planted) -> float:
    """Recall of one budget for the head above that of four blocks per query, equal density."""
    context, runs = around(TOKENS), Vmoba(boxes="1x8x8")
    whole, _ = meet_density(
        runs, 0.1, TOKENS, lambda p: density(p.choose(data.q, data.k, data.v, context), context)
    )
    return recall(whole, data, context) - recall(replace(runs, keep=4), data, context)


@claim(
    method="vmoba",
    family="attention",
    paper=Vmoba.paper,
    says="one budget for a whole head serves queries that need much and those that need little",
    measures="recall above that of as many blocks per query; half need 1 of 40 runs, half 7",
    at_least=0.1,
    grade=Grade.FIRM,
)
def test_a_budget_for_the_head_beats_one_per_query() -> float:
    owner = torch.arange(TOKENS) // RUN
    own = torch.nn.functional.one_hot(owner, TOKENS // RUN).bool()
    needy = (torch.arange(TOKENS) % 2 == 0)[:, None]
    return gain_of_a_budget_for_the_head(
        wanting(torch.where(needy, drawn_runs(6), own), torch.ones(TOKENS))
    )


@claim(
    method="vmoba",
    family="attention",
    paper=Vmoba.paper,
    says="it serves loud queries at the cost of quiet ones that need as much (its known limit)",
    measures="recall above that of as many blocks per query; all need 4 of 40 runs, half are "
    "twice as loud",
    at_most=0.0,
    grade=Grade.FIRM,
)
def test_loud_queries_take_the_budget_of_quiet_ones() -> float:
    loud = torch.where(torch.arange(TOKENS) % 2 == 0, 2.0, 1.0)
    return gain_of_a_budget_for_the_head(wanting(drawn_runs(3), loud))


# -- AdaSpa


@cache
def scene(seed: int = 0) -> Planted:
    return plant(replace(PRESETS["cluster"], level=8, columns=4), 2048, seed=seed)


def later(data: Planted, share: float, seed: int) -> Planted:
    return replace(data, q=drifted(data.q, share, seed), k=drifted(data.k, share, seed + 1))


def reused(first: Planted, then: Planted) -> float:
    """Recall in a later step of the tiles that were searched in an earlier one."""
    memory: MutableMapping[str, Tensor] = {}
    policy = AdaSpa(share=0.25, by_head=False)
    for step, data in ((9, first), (10, first), (11, then)):
        context = around(2048, step=step, memory=memory)
        done = attend(data.q, data.k, data.v, policy=policy, context=context)
    return mass_recall(then.q, then.k, done.choice, context)


@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="the tiles of one step serve the next ones",
    measures="recall less that of a fresh oracle; noise of 0.02, 0.1, 0.3 of the spread, 8 of 32",
    at_least=-0.02,
    grade=Grade.FIRM,
)
def test_tiles_are_reused_over_steps() -> Iterator[float]:
    oracle = Oracle(query_block=64, key_block=64, keep=8)
    for share in (0.02, 0.1, 0.3):
        now = later(scene(), share, seed=5)
        yield reused(scene(), now) - recall(oracle, now, around(2048))


@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="an exact search, reused, is better than pooled scores at every step",
    measures="recall above pooled means', noise of 0.1 of the spread, 8 of 32 tiles",
    at_least=0.03,
    grade=Grade.FIRM,
)
def test_a_reused_search_beats_pooled_means() -> float:
    now = later(scene(), 0.1, seed=5)
    means = Mean(query_block=64, key_block=64, keep=8)
    return reused(scene(), now) - recall(means, now, around(2048))


def searched(memory: MutableMapping[str, Tensor], now: Planted) -> float:
    """Recall of the tiles that a search at step 10 finds."""
    policy = AdaSpa(share=0.25, by_head=False)
    for step in (10, 11):
        context = around(2048, step=step, memory=memory)
        done = attend(now.q, now.k, now.v, policy=policy, context=context)
    return mass_recall(now.q, now.k, done.choice, context)


@pytest.mark.slow
@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="the log-sum-exp of the step before serves the search",
    measures="recall lost against a search in two passes; noise of 0.02, 0.1, 0.3, 8 of 32 tiles",
    at_most=0.01,
    grade=Grade.FIRM,
)
def test_an_older_sum_serves_the_search() -> Iterator[float]:
    for share in (0.02, 0.1, 0.3):
        now = later(scene(), share, seed=5)
        memory: MutableMapping[str, Tensor] = {}
        before = around(2048, step=9, memory=memory)
        attend(scene().q, scene().k, scene().v, policy=AdaSpa(), context=before)
        yield searched({}, now) - searched(memory, now)


@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="a scene that changes needs a new search",
    measures="recall lost by tiles of another scene, 8 of 32 tiles",
    at_least=0.2,
    grade=Grade.FIRM,
)
def test_a_new_scene_needs_a_new_search() -> float:
    return reused(scene(), scene()) - reused(scene(), scene(seed=7))


@pytest.mark.slow
@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="heads of concentrated mass give tiles to those of spread mass",
    measures="mean recall gained by budgets per head, four unlike heads, 8 of 32 tiles each",
    at_least=0.03,
    grade=Grade.FIRM,
)
def test_budgets_follow_the_heads(seed: int) -> float:
    return gain_of_budgets(seed, columns=2)


@pytest.mark.slow
@claim(
    method="adaspa",
    family="attention",
    paper=AdaSpa.paper,
    says="no head gives more than another gains",
    measures="mean recall gained by budgets per head where no head has tiles to spare",
    at_least=0.0,
    grade=Grade.FIRM,
)
def test_budgets_never_lose(seed: int) -> float:
    return gain_of_budgets(seed, columns=8)


def gain_of_budgets(seed: int, columns: int) -> float:
    """Topics of 4 and of 10 nats, columns, no structure; 8 of 32 tiles each, or by head."""
    presets = [
        replace(PRESETS["cluster"], level=4),
        replace(PRESETS["cluster"], level=10),
        replace(PRESETS["vert"], level=10, columns=columns),
        PRESETS["flat"],
    ]
    heads = [plant(preset, 2048, seed=seed + 10 * i) for i, preset in enumerate(presets)]
    q, k, v = (torch.cat([getattr(head, name) for head in heads], 1) for name in ("q", "k", "v"))
    data = Planted(q=q, k=k, v=v)
    context = around(2048)
    even, fitted = (AdaSpa(share=0.25, by_head=by_head) for by_head in (False, True))
    return recall(fitted, data, context) - recall(even, data, context)
