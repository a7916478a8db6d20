"""Claims about bidirectional policies and low precision, on planted data (one head, 64 wide)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blockwright.attention import Context, Layout, Policy, attend
from blockwright.attention.engines.products import plain_product
from blockwright.attention.heads import grouped_scores
from blockwright.attention.metrics import mass_recall, output_error
from blockwright.attention.planted import PRESETS, Planted, plant
from blockwright.attention.policies.blade import Blade
from blockwright.attention.policies.llsa import Llsa
from blockwright.attention.policies.oracle import Oracle
from blockwright.attention.policies.random import Random
from blockwright.attention.sage import Sage, sage_product
from tests.claims.ledger import Grade, claim

SCALE = 0.125


def context(tokens: int) -> Context:
    return Context(layout=Layout.plain(tokens, tokens, causal=False), scale=SCALE)


@cache
def clustered() -> Planted:
    return plant(replace(PRESETS["cluster"], segment=128, level=7), 4096)


def judged(policy: Policy, data: Planted) -> tuple[float, float]:
    """Recall and output error."""
    around = context(data.q.shape[2])
    done = attend(data.q, data.k, data.v, policy=policy, context=around)
    dense = attend(data.q, data.k, data.v, policy="dense", context=around).output
    return mass_recall(data.q, data.k, done.choice, around), output_error(done.output, dense)


# -- LLSA


@claim(
    method="llsa",
    family="attention",
    paper=Llsa.paper,
    says="searching level by level finds what the flat search finds",
    measures="recall of two levels over that of one, cluster (7 nats), 4096 tokens, K 8 and 16",
    at_least=0.97,
    grade=Grade.FIRM,
)
def test_the_hierarchical_search_finds_what_the_flat_one_does() -> Iterator[float]:
    for keep in (8, 16):
        flat, _ = judged(Llsa(keep=keep, levels=1), clustered())
        deep, _ = judged(Llsa(keep=keep, levels=2), clustered())
        yield deep / flat


@claim(
    method="llsa",
    family="attention",
    paper=Llsa.paper,
    says="means of what was not visited keep the global picture",
    measures="error with means over error without, one level, cluster, 4096 tokens, K 8 and 16",
    at_most=0.5,
    grade=Grade.FIRM,
)
def test_means_of_unvisited_blocks_lower_the_error() -> Iterator[float]:
    for keep in (8, 16):
        _, bare = judged(Llsa(keep=keep, levels=1, enrich=False), clustered())
        _, enriched = judged(Llsa(keep=keep, levels=1), clustered())
        yield enriched / bare


@claim(
    method="llsa",
    family="attention",
    paper=Llsa.paper,
    says="two levels with means still cover every token once",
    measures="output error, 1024 tokens constant in runs of 256, two levels, K 2",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_levels_cover_every_token_once() -> float:
    data = plant(PRESETS["mixed"], 1024)
    k, v = (x[:, :, ::256].repeat_interleave(256, 2) for x in (data.k, data.v))
    return judged(Llsa(keep=2, levels=2), Planted(q=data.q, k=k, v=v))[1]


@pytest.mark.slow
@claim(
    method="llsa",
    family="attention",
    paper=Llsa.paper,
    says="means of everything, visited blocks counted twice, still help",
    measures="error with all means over error without, one level, cluster, 4096 tokens, K 8, 16",
    at_most=0.6,
    grade=Grade.FIRM,
)
def test_means_of_all_blocks_lower_the_error() -> Iterator[float]:
    for keep in (8, 16):
        _, bare = judged(Llsa(keep=keep, levels=1, enrich=False), clustered())
        _, doubled = judged(Llsa(keep=keep, levels=1, hide=False), clustered())
        yield doubled / bare


def products_to_choose(tokens: int, levels: int) -> int:
    """Multiplications and additions of the search, counted as PyTorch runs them."""
    data = plant(PRESETS["flat"], tokens)
    policy = Llsa(keep=8, levels=levels, enrich=False)
    with FlopCounterMode(display=False) as counted:
        policy.choose(data.q, data.k, data.v, context(tokens))
    return int(counted.get_total_flops())


@pytest.mark.slow
@claim(
    method="llsa",
    family="attention",
    paper=Llsa.paper,
    says="the search costs N log N",
    measures="products of two levels over those of one: at 4096 tokens less 0.5, at 65536; K 8",
    at_most=0.05,
    grade=Grade.HARD,
)
def test_the_hierarchical_search_is_cheap() -> Iterator[float]:
    for tokens, allowed in ((4096, 0.5), (65536, 0.0)):
        yield products_to_choose(tokens, 2) / products_to_choose(tokens, 1) - allowed


# -- BLADE


@pytest.mark.slow
@claim(
    method="blade",
    family="attention",
    paper=Blade.paper,
    says="a few sampled tokens per tile find the tiles",
    measures="recall minus the oracle's, then minus random's less 0.5; 4 of 32 tiles, cluster and "
    "columns (7 nats), 4096 tokens",
    at_least=-0.06,
    grade=Grade.FIRM,
)
def test_sampled_tokens_find_tiles(seed: int) -> Iterator[float]:
    data = topics_and_columns(seed)
    sampled, _ = judged(Blade(least=0.125, most=0.125), data)
    yield sampled - judged(Oracle(keep=4), data)[0]
    yield sampled - judged(Random(keep=4), data)[0] - 0.5


@cache
def topics_and_columns(seed: int) -> Planted:
    runs = replace(PRESETS["cluster"], segment=128, level=7)
    return plant(replace(runs, columns=6, column_level=6), 4096, seed=seed)


@pytest.mark.slow
@claim(
    method="blade",
    family="attention",
    paper=Blade.paper,
    says="pooled keys stand for what was dropped, where values follow keys",
    measures="error with pooled keys over without, 3 of 32 tiles, cluster and columns, 4096 tokens",
    at_most=0.7,
    grade=Grade.SOFT,
)
def test_pooled_keys_stand_for_what_was_dropped(seed: int) -> float:
    data = topics_and_columns(seed)
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    data = replace(data, v=data.v + 0.3 * data.k @ mixing)
    few = Blade(least=0.08, most=0.08)
    return judged(replace(few, window=30), data)[1] / judged(few, data)[1]


@claim(
    method="blade",
    family="attention",
    paper=Blade.paper,
    says="with every token sampled, scores are those of exact row maxima",
    measures="greatest difference from explicit scores, 256 tokens, tiles of 32",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_sampling_everything_is_exact() -> float:
    data = plant(PRESETS["cluster"], 256)
    got = Blade(block=32, samples=32).sampled_scores(data.q, data.k, context(256))
    logits = grouped_scores(data.q, data.k)[0, 0] * SCALE
    peaks = logits.view(256, 8, 32).amax(-1)
    wanted = torch.exp(peaks - peaks.amax(-1, keepdim=True)).view(8, 32, 8).amax(1)
    return float((got[0, 0] - wanted).abs().max())


# -- SageAttention2


@cache
def biased(tokens: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """Constant outliers on four channels of k, four others of q, and all of v; [1, N, 64]."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, tokens, 64, generator=generator) for _ in range(3))
    k[..., :4] += 12 * torch.randn(4, generator=generator)
    q[..., 4:8] += 8 * torch.randn(4, generator=generator)
    v += 4 * torch.randn(64, generator=generator)
    return q, k, v


def tiled(settings: Sage) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of ``biased`` by tiles of 128 queries."""
    q, k, v = biased()
    parts = [sage_product(rows, k, v, None, SCALE, settings) for rows in q.split(128, 1)]
    return torch.cat([part for part, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def sage_error(settings: Sage) -> float:
    """Error of the output less its mean value, which is large and exact."""
    q, k, v = biased()
    wanted, _ = plain_product(q, k, v, None, SCALE)
    return float(torch.linalg.norm(tiled(settings)[0] - wanted) / torch.linalg.norm(wanted))


@claim(
    method="sage",
    family="attention",
    paper=Sage.paper,
    says="taking means out of K and Q makes 4 bits enough",
    measures="error with both means over that with none, INT4, outlier channels, 1024 tokens",
    at_most=0.5,
    grade=Grade.FIRM,
)
def test_smoothing_makes_four_bits_enough() -> float:
    return sage_error(Sage()) / sage_error(Sage(smooth_k=False, smooth_q=False))


@claim(
    method="sage",
    family="attention",
    paper=Sage.paper,
    says="4 bits give nearly the exact direction",
    measures="cosine of the output, INT4, both means taken out, outlier channels, 1024 tokens",
    at_least=0.999,
    grade=Grade.FIRM,
)
def test_four_bits_keep_the_direction() -> float:
    q, k, v = biased()
    wanted, _ = plain_product(q, k, v, None, SCALE)
    return float(torch.cosine_similarity(tiled(Sage())[0].flatten(), wanted.flatten(), 0))


@claim(
    method="sage",
    family="attention",
    paper=Sage.paper,
    says="taking the mean out of V halves the error of 8-bit floats",
    measures="error with over without, INT8 scores, 1024 tokens",
    at_most=0.5,
    grade=Grade.FIRM,
)
def test_smoothing_values_halves_the_error() -> float:
    return sage_error(Sage(bits=8)) / sage_error(Sage(bits=8, smooth_v=False))


@claim(
    method="sage",
    family="attention",
    paper=Sage.paper,
    says="without rounding, taking means out changes nothing",
    measures="greatest difference of outputs and of log-sum-exps from plain attention",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_the_algebra_is_exact() -> Iterator[float]:
    q, k, v = biased()
    output, lse = plain_product(q, k, v, None, SCALE)
    got, got_lse = tiled(Sage(bits=0))
    yield float((got - output).abs().max())
    yield float((got_lse - lse).abs().max())
