"""Claims about attention policies, on planted data (one head, 64 wide; tiles of 64 tokens)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch

from blockwright.attention import Context, Layout, attend
from blockwright.attention.heads import grouped_scores
from blockwright.attention.planted import PRESETS, plant
from blockwright.attention.policies.moba import Moba
from blockwright.attention.policies.moba_fine import FineMoba, signal_to_noise
from blockwright.attention.policies.quest import Quest, page_bound
from blockwright.attention.policies.vertical_slash import VerticalSlash
from blockwright.attention.policies.window import Window
from blockwright.registry import policy_class, policy_named
from tests.claims.attention_cases import (
    SCALE,
    context,
    recall,
)
from tests.claims.ledger import Grade, claim

# -- window and sinks


@claim(
    method="window",
    family="attention",
    paper=Window.paper,
    says="what lies between sinks and window is lost",
    measures="recall below the oracle's on mixed, 4096 tokens, density 0.23",
    at_least=0.3,
    grade=Grade.FIRM,
)
def test_a_window_is_far_below_the_oracle() -> float:
    return recall("oracle", "mixed") - recall("window", "mixed")


# -- vertical-slash


@claim(
    method="vertical_slash",
    family="attention",
    paper=VerticalSlash.paper,
    says="diagonals that the last queries show are found",
    measures="recall above random's on slash, 8 columns and 32 distances, 4096 tokens",
    at_least=0.25,
    grade=Grade.FIRM,
)
def test_vertical_slash_finds_diagonals() -> float:
    return recall("vertical_slash", "slash") - recall("random", "slash")


@claim(
    method="vertical_slash",
    family="attention",
    paper=VerticalSlash.paper,
    says="topics are beyond it (its known limit)",
    measures="recall above pooled means' on cluster, 4096 tokens",
    at_most=-0.2,
    grade=Grade.FIRM,
)
def test_vertical_slash_misses_topics() -> float:
    return recall("vertical_slash", "cluster") - recall("mean", "cluster")


# -- pooled means and Quest


@claim(
    method="mean",
    family="attention",
    paper=policy_class("mean").paper,
    says="pooled scores find tiles",
    measures="recall above random's on vert, slash, cluster, mixed, 4096 tokens, density 0.23",
    at_least=0.25,
    grade=Grade.FIRM,
)
def test_pooled_means_find_tiles() -> Iterator[float]:
    for preset in ("vert", "slash", "cluster", "mixed"):
        yield recall("mean", preset) - recall("random", preset)


@claim(
    method="quest",
    family="attention",
    paper=Quest.paper,
    says="the page score bounds every key of the page from above",
    measures="bound minus greatest q . k of the page, 64 queries, 32 pages, 3 seeds",
    at_least=-1e-4,
    grade=Grade.HARD,
)
def test_quest_scores_are_upper_bounds() -> Iterator[float]:
    for seed in range(3):
        data = plant(PRESETS["flat"], 512, seed=seed)
        queries = data.q[:, :, :64]
        bound = page_bound(queries, data.k, Layout.plain(512, 512), 16)
        products = grouped_scores(queries, data.k).unflatten(-1, (-1, 16)).amax(-1)
        yield float((bound - products).min())


@cache
def needle_hits(policy: str) -> float:
    """Share of queries whose planted key's page is kept, 1/16 of 256 pages, decoding."""
    tokens, hits = 4096, 0
    data = plant(PRESETS["flat"], tokens)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(tokens - 64, generator=generator)[:200]
    amplitude = math.sqrt(12 * math.sqrt(64))
    for row in rows.tolist():
        direction = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
        q, k = data.q[:, :, -1:].roll(row, -1) + amplitude * direction, data.k.clone()
        k[0, 0, row] += amplitude * direction
        around = Context(layout=Layout.plain(1, tokens), scale=SCALE)
        selection = policy_named(policy).choose(q, k, data.v, around).selection
        assert selection is not None
        hits += bool(selection.to_mask(256)[0, 0, 0, row // 16])
    return hits / len(rows)


@claim(
    method="quest",
    family="attention",
    paper=Quest.paper,
    says="one hot key cannot hide in its page",
    measures="share of 200 planted keys (12 nats) found, pages of 16, 16 of 256 kept",
    at_least=0.9,
    grade=Grade.FIRM,
)
def test_quest_finds_a_hot_key() -> float:
    return needle_hits("quest@keep=16")


@claim(
    method="quest",
    family="attention",
    paper=Quest.paper,
    says="in a mean it would",
    measures="share of 200 planted keys (12 nats) found, above that of mean keys of equal pages",
    at_least=0.2,
    grade=Grade.FIRM,
)
def test_quest_finds_what_a_mean_hides() -> float:
    return needle_hits("quest@keep=16") - needle_hits("mean@query_block=1,key_block=16,keep=16")


# -- MoBA


@claim(
    method="moba",
    family="attention",
    paper=Moba.paper,
    says="routing tokens by mean keys finds topics and mixtures",
    measures="recall on cluster and mixed, 8 of 64 blocks of 64, 4096 tokens",
    at_least=0.88,
    grade=Grade.FIRM,
)
def test_moba_finds_topics() -> Iterator[float]:
    yield from (recall("moba", preset) for preset in ("cluster", "mixed"))


@claim(
    method="moba",
    family="attention",
    paper=Moba.paper,
    says="narrow diagonals are beyond a mean key (its known weak case)",
    measures="recall on slash, 8 of 64 blocks of 64, 4096 tokens, below that on cluster",
    at_least=0.1,
    grade=Grade.FIRM,
)
def test_moba_is_weak_on_diagonals() -> float:
    return recall("moba", "cluster") - recall("moba", "slash")


@claim(
    method="moba",
    family="attention",
    paper=Moba.paper,
    says="it is attention under an explicit mask of own and routed blocks",
    measures="greatest difference from masked softmax attention, 200 tokens, blocks of 16",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_moba_is_masked_attention() -> float:
    tokens, block, keep = 200, 16, 3
    data = plant(PRESETS["cluster"], tokens)
    q, k, v = (x[0, 0] for x in (data.q, data.k, data.v))
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        own = i // block
        gates = [float(q[i] @ k[t * block : (t + 1) * block].mean(0)) for t in range(own)]
        best = sorted(range(own), key=lambda t: (-gates[t], t))[: keep - 1]
        for t in [*best, own]:
            seen[i, t * block : (t + 1) * block] = True
    seen &= torch.ones_like(seen).tril()
    wanted = torch.softmax((q @ k.T * SCALE).masked_fill(~seen, -torch.inf), -1) @ v
    policy = Moba(block=block, keep=keep)
    got = attend(data.q, data.k, data.v, policy=policy, context=context(tokens)).output
    return float((got[0, 0] - wanted).abs().max())


# -- small blocks


@pytest.mark.slow
@claim(
    method="moba_fine",
    family="attention",
    paper=FineMoba.paper,
    says="the signal-to-noise ratio predicts how often the right block wins",
    measures="predicted minus simulated share of wins, D 64, blocks of 128, 64, 16, 20000 pairs",
    at_least=-0.04,
    at_most=0.04,
    grade=Grade.FIRM,
)
def test_the_router_model_predicts_wins() -> Iterator[float]:
    """Block scores of unit queries against means of real unit keys, one of them related."""
    width, delta, pairs = 64, 0.5, 20000
    generator = torch.Generator().manual_seed(0)
    q = torch.zeros(width)
    q[0] = 1.0
    for block in (128, 64, 16):
        scores = torch.zeros(2, pairs)
        for _ in range(block):
            keys = torch.randn(2, pairs, width, generator=generator)
            scores += torch.nn.functional.normalize(keys, dim=-1) @ q / block
        won = float((scores[0] + delta / block > scores[1]).float().mean())
        snr = signal_to_noise(delta, width, block)
        yield 0.5 * (1 + math.erf(snr / math.sqrt(2))) - won


@claim(
    method="moba_fine",
    family="attention",
    paper=FineMoba.paper,
    says="at equal density, smaller blocks find more",
    measures="needle recall gained by each halving of the block, 128 to 16, an eighth kept",
    at_least=0.05,
    grade=Grade.FIRM,
)
def test_smaller_blocks_route_better() -> Iterator[float]:
    found = [needle_recall(block) for block in (128, 64, 32, 16)]
    yield from (finer - coarser for coarser, finer in pairwise(found))


@claim(
    method="moba_fine",
    family="attention",
    paper=FineMoba.paper,
    says="related keys that lie together are found together",
    measures="needle recall of four related keys in a block of 64, above that of one",
    at_least=0.3,
    grade=Grade.FIRM,
)
def test_related_keys_that_lie_together_are_found() -> float:
    return needle_recall(64, related=4) - needle_recall(64)


def needle_recall(block: int, tokens: int = 2048, *, related: int = 1) -> float:
    """Share of the later half's queries that are routed to the block of their related keys."""
    data = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(0))
    q, k = torch.nn.functional.normalize(data, dim=-1)
    half, hits = tokens // 2, 0
    means = k[:half].unflatten(0, (-1, block)).mean(1)
    for row in range(half, tokens):
        needle = (row * 37) % half
        place = needle // block * block + (needle + torch.arange(related)) % block
        alike = torch.nn.functional.normalize(0.6 * q[row] + 0.8 * k[place], dim=-1)
        scores = means @ q[row]
        scores[needle // block] += ((alike - k[place]) @ q[row]).sum() / block
        hits += bool((scores.topk(len(means) // 8).indices == needle // block).any())
    return hits / half
