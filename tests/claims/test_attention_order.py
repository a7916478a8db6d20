"""Claims about sorted keys, early stops and Taylor tails, on planted data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from blockwright.attention import attend
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.planted import PRESETS, Preset, plant
from blockwright.attention.policies import pbs
from blockwright.attention.policies.pbs import Pbs
from blockwright.attention.policies.pisa import Pisa
from blockwright.attention.policies.s2o import S2o
from blockwright.attention.stopping import dropped_bound
from blockwright.registry import policy_named
from tests.claims.attention_cases import (
    TOKENS,
    context,
    measured,
    planted,
    recall,
)
from tests.claims.ledger import Grade, claim

# -- permutation


@claim(
    method="pbs",
    family="attention",
    paper=Pbs.paper,
    says="sorting keys inside segments packs scattered mass into few tiles",
    measures="recall above unpermuted pooled tiles' at density 0.43 on scatter, segments of 512",
    at_least=0.15,
    grade=Grade.FIRM,
)
def test_permuted_keys_need_fewer_tiles() -> float:
    return recall("pbs", "scatter") - recall("wide mean", "scatter")


@claim(
    method="pbs",
    family="attention",
    paper=Pbs.paper,
    says="sorting keys inside segments packs scattered mass into few tiles",
    measures="output error over that of unpermuted pooled tiles, scatter, density 0.43",
    at_most=0.2,
    grade=Grade.FIRM,
)
def test_permuted_keys_lower_the_error() -> float:
    return measured("pbs", "scatter")[1] / measured("wide mean", "scatter")[1]


@claim(
    method="pbs",
    family="attention",
    paper=Pbs.paper,
    says="an order drawn at random packs nothing",
    measures="recall with a random order above that of unpermuted pooled tiles, scatter",
    at_most=0.05,
    grade=Grade.FIRM,
)
def test_a_random_order_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> float:
    drawn = torch.rand(1, 1, TOKENS, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pbs, "_importance", lambda *_: drawn)
    data = planted("scatter")
    choice = Pbs(block=64, segment=512, keep=8).choose(data.q, data.k, data.v, context())
    return mass_recall(data.q, data.k, choice, context()) - recall("wide mean", "scatter")


@claim(
    method="s2o",
    family="attention",
    paper=S2o.paper,
    says="single keys in order of importance, stopped early, need a small density",
    measures="output error on scatter, and a third of the density, eps 0.01, 4096 tokens",
    at_most=0.05,
    grade=Grade.FIRM,
)
def test_early_stop_keeps_scattered_keys() -> Iterator[float]:
    _, error, rho = measured("s2o", "scatter")
    yield error
    yield rho / 3


@claim(
    method="s2o",
    family="attention",
    paper=S2o.paper,
    says="a smaller eps visits more",
    measures="density lost by going from eps 0.1 to 0.01 to 0.001 on mixed, 1024 tokens",
    at_most=0,
    grade=Grade.HARD,
)
def test_density_falls_with_eps() -> Iterator[float]:
    data, around = plant(PRESETS["mixed"], 1024), context(1024)
    found = [
        density(attend(data.q, data.k, data.v, policy=S2o(eps=e), context=around).choice, around)
        for e in (0.1, 0.01, 0.001)
    ]
    yield found[0] - found[1]
    yield found[1] - found[2]


@claim(
    method="s2o",
    family="attention",
    paper=S2o.paper,
    says="where every row is judged, what was dropped is bounded",
    measures="largest error of a row / (2 bound largest value), scatter, 1024 tokens, eps 0.01",
    at_most=1,
    grade=Grade.FIRM,
)
def test_what_was_dropped_is_bounded() -> float:
    data, around = plant(PRESETS["scatter"], 1024), context(1024)
    policy = S2o(eps=0.01, cap=1.0, worst_row=True)
    whole = policy.choose(data.q, data.k, data.v, around)
    done = attend(data.q, data.k, data.v, policy=policy, context=around)
    dense = attend(data.q, data.k, data.v, policy="dense", context=around).output
    assert whole.selection is not None
    assert done.choice.selection is not None
    assert whole.stop is not None
    bound = dropped_bound(whole.selection, done.choice.selection, whole.stop)
    row = bound.repeat_interleave(policy.block, -1)
    error = (done.output - dense).abs().amax(-1)
    stopped = row > 0
    return float((error[stopped] / (2 * row[stopped] * data.v.abs().max())).max())


# -- Taylor tails


def tail_errors(preset: Preset, seed: int) -> list[float]:
    """Output errors without tail, and with tails of order 0 and 1; 2048 tokens, both ways."""
    data = plant(preset, 2048, seed=seed)
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    v = data.v + 0.3 * data.k @ mixing
    around = context(2048, causal=False)
    dense = attend(data.q, data.k, v, policy="dense", context=around).output
    kept = policy_named("mean@query_block=64,key_block=64,keep=5")
    return [
        output_error(attend(data.q, data.k, v, policy=p, context=around).output, dense)
        for p in (kept, Pisa(order=0), Pisa(order=1))
    ]


@claim(
    method="pisa",
    family="attention",
    paper=Pisa.paper,
    says="the first order serves flat attention, where dropping tiles fails",
    measures="output error over that of dropping, flat noise, density 0.15, 2048 tokens, 2 seeds",
    at_most=0.4,
    grade=Grade.FIRM,
)
def test_first_order_tails_serve_flat_attention() -> Iterator[float]:
    for seed in range(2):
        dropped, _, first = tail_errors(PRESETS["flat"], seed)
        yield first / dropped


@pytest.mark.slow
@claim(
    method="pisa",
    family="attention",
    paper=Pisa.paper,
    says="tails recover most of what dropping tiles loses",
    measures="error with tail over without, cluster (6 nats), density 0.15, 2048 tokens, mean of 4",
    at_most=0.2,
    grade=Grade.FIRM,
)
def test_tails_recover_dropped_tiles() -> float:
    errors = [tail_errors(replace(PRESETS["cluster"], level=6), seed) for seed in range(4)]
    return sum(first / dropped for dropped, _, first in errors) / len(errors)


@pytest.mark.slow
@claim(
    method="pisa",
    family="attention",
    paper=Pisa.paper,
    says="the first order recovers more than the zeroth",
    measures="error of order 1 over order 0, cluster (6 nats), density 0.15, 2048 tokens",
    at_most=1.0,
    grade=Grade.FIRM,
)
def test_the_first_order_recovers_more(seed: int) -> float:
    _, zeroth, first = tail_errors(replace(PRESETS["cluster"], level=6), seed)
    return first / zeroth


@claim(
    method="pisa",
    family="attention",
    paper=Pisa.paper,
    says="tails are exact where keys and values are constant inside tiles",
    measures="output error, 512 tokens, tiles of 64, one tile exact",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_constant_tiles_are_exact() -> float:
    data = plant(PRESETS["mixed"], 512)
    k, v = (x[:, :, ::64].repeat_interleave(64, 2) for x in (data.k, data.v))
    around = context(512, causal=False)
    dense = attend(data.q, k, v, policy="dense", context=around).output
    got = attend(data.q, k, v, policy=Pisa(share=0.1), context=around).output
    return output_error(got, dense)
