"""Claims about attention policies, on planted data (one head, 64 wide; tiles of 64 tokens)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from blockwright.attention import Context, Layout, attend
from blockwright.attention.budget import meet_density
from blockwright.attention.head_thresholds import fit_heads
from blockwright.attention.heads import grouped_scores
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.planted import PRESETS, Planted, Preset, plant
from blockwright.attention.policies import pbs
from blockwright.attention.policies.moba import Moba
from blockwright.attention.policies.moba_fine import FineMoba, signal_to_noise
from blockwright.attention.policies.pbs import Pbs
from blockwright.attention.policies.pisa import Pisa
from blockwright.attention.policies.quest import Quest, page_bound
from blockwright.attention.policies.s2o import S2o
from blockwright.attention.policies.vertical_slash import VerticalSlash
from blockwright.attention.policies.window import Window
from blockwright.attention.policies.xattention import XAttention
from blockwright.attention.stopping import dropped_bound
from blockwright.registry import policy_class, policy_named
from tests.claims.ledger import Grade, claim

TOKENS, SCALE = 4096, 0.125
TILES_OF_64 = {
    "oracle": "oracle@query_block=64,key_block=64,keep=8",
    "random": "random@query_block=64,key_block=64,keep=8",
    "mean": "mean@query_block=64,key_block=64,keep=8",
    "wide mean": "mean@query_block=64,key_block=64,keep=16",
    "quest": "quest@query_block=64,key_block=64,keep=8",
    "xattention": "xattention@block=64,stride=8,keep=8",
    "moba": "moba@block=64,keep=8",
    "window": "window@window=384,sink=64",
    "vertical_slash": "vertical_slash@columns=8,distances=32,sink=1,recent=1",
    "pbs": "pbs@block=64,segment=512,keep=8",
    "s2o": "s2o@eps=0.01",
}
TILES_OF_SIX = "mean@query_block=64,key_block=64,keep=6"


@cache
def planted(preset: str, seed: int = 0) -> Planted:
    return plant(PRESETS[preset], TOKENS, seed=seed)


@cache
def dense_output(preset: str, seed: int = 0) -> Tensor:
    data = planted(preset, seed)
    return attend(data.q, data.k, data.v, policy="dense", context=context()).output


def context(tokens: int = TOKENS, *, causal: bool = True) -> Context:
    return Context(layout=Layout.plain(tokens, tokens, causal=causal), scale=SCALE)


@cache
def measured(policy: str, preset: str) -> tuple[float, float, float]:
    """Recall, output error and density."""
    data = planted(preset)
    done = attend(
        data.q, data.k, data.v, policy=policy_named(TILES_OF_64[policy]), context=context()
    )
    return (
        mass_recall(data.q, data.k, done.choice, context()),
        output_error(done.output, dense_output(preset)),
        density(done.choice, context()),
    )


def recall(policy: str, preset: str) -> float:
    return measured(policy, preset)[0]


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


# -- XAttention


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="one strided product gives antidiagonal means",
    measures="greatest difference from explicit softmaxed antidiagonal means, 128 tokens, S 8",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_strided_products_are_antidiagonal_means() -> float:
    stride, tokens = 8, 128
    data = plant(PRESETS["mixed"], tokens)
    policy = XAttention(block=32, stride=stride)
    got = policy.antidiagonal_mass(data.q, data.k, context(tokens))
    cells = tokens // stride
    scores = (data.q @ data.k.mT)[0, 0] * SCALE
    squares = scores.view(cells, stride, cells, stride).transpose(1, 2)
    W = squares.flip(-1).diagonal(dim1=-2, dim2=-1).mean(-1)
    later = torch.arange(cells) > torch.arange(cells)[:, None]
    W = torch.softmax(W.masked_fill(later, -torch.inf), -1)
    wanted = W.view(4, 4, 4, 4).sum((1, 3))
    return float((got[0, 0] - wanted).abs().max())


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="antidiagonals see more than pooled means",
    measures="mean recall above pooled means' on slash, cluster, mixed, density 0.23",
    at_least=0.01,
    grade=Grade.FIRM,
)
def test_antidiagonals_beat_pooled_means() -> float:
    presets = ("slash", "cluster", "mixed")
    return sum(recall("xattention", p) - recall("mean", p) for p in presets) / len(presets)


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="antidiagonals are far from chance",
    measures="mean recall above random's on slash, cluster, mixed, density 0.23",
    at_least=0.3,
    grade=Grade.FIRM,
)
def test_antidiagonals_beat_chance() -> float:
    presets = ("slash", "cluster", "mixed")
    return sum(recall("xattention", p) - recall("random", p) for p in presets) / len(presets)


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="antidiagonals see diagonals that pooled means miss",
    measures="recall above pooled means' on slash, 2048 tokens, 6 of 32 tiles of 64",
    at_least=0.1,
    grade=Grade.FIRM,
)
def test_antidiagonals_see_diagonals() -> float:
    data, around = plant(PRESETS["slash"], 2048), context(2048)
    found = [
        mass_recall(data.q, data.k, policy.choose(data.q, data.k, data.v, around), around)
        for policy in (XAttention(block=64, stride=8, keep=6), policy_named(TILES_OF_SIX))
    ]
    return found[0] - found[1]


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="antidiagonals find nearly what the true masses say",
    measures="recall below the oracle's on vert, slash, cluster, mixed, density 0.23",
    at_most=0.06,
    grade=Grade.FIRM,
)
def test_xattention_is_near_the_oracle() -> Iterator[float]:
    for preset in ("vert", "slash", "cluster", "mixed"):
        yield recall("oracle", preset) - recall("xattention", preset)


def unlike_heads(seed: int) -> Planted:
    """Four heads of 2048 tokens: columns, diagonals, topics, and no structure."""
    heads = [plant(PRESETS[name], 2048, seed=seed) for name in ("vert", "slash", "cluster", "flat")]
    q, k, v = (torch.cat([getattr(head, name) for head in heads], 1) for name in ("q", "k", "v"))
    return Planted(q=q, k=k, v=v)


@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="thresholds of single heads serve better than one for all",
    measures="output error over that of one threshold, other draws of four unlike heads, 2048 "
    "tokens, both at density 0.4",
    at_most=0.9,
    grade=Grade.FIRM,
)
def test_every_head_has_its_own_threshold(seed: int) -> float:
    around, one = context(2048), XAttention(block=64, stride=8)
    known, unseen = unlike_heads(seed), unlike_heads(seed + 50)
    fitted = fit_heads(one, known.q, known.k, known.v, around, density=0.4)
    dense = attend(unseen.q, unseen.k, unseen.v, policy="dense", context=around).output
    errors = []
    for policy in (fitted, one):
        met, _ = meet_density(
            policy,
            0.4,
            2048,
            lambda p: density(p.choose(unseen.q, unseen.k, unseen.v, around), around),
        )
        done = attend(unseen.q, unseen.k, unseen.v, policy=met, context=around)
        errors.append(output_error(done.output, dense))
    return errors[0] / errors[1]


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


@claim(
    method="pisa",
    family="attention",
    paper=Pisa.paper,
    says="tails recover most of what dropping tiles loses",
    measures="error with tail over without, cluster (6 nats), density 0.15, 2048 tokens",
    at_most=0.2,
    grade=Grade.FIRM,
)
def test_tails_recover_dropped_tiles(seed: int) -> float:
    dropped, _, first = tail_errors(replace(PRESETS["cluster"], level=6), seed)
    return first / dropped


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


# -- engines for GPUs


def gpu_problem() -> tuple[Tensor, Tensor, Tensor]:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    data = plant(PRESETS["mixed"], 1024, heads=4)
    return data.q.cuda(), data.k.cuda(), data.v.cuda()


def engine_gap(engine: str, tensors: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> float:
    """Relative output error of an engine on the GPU beside the definition, tiles of 128."""
    layout = Layout.plain(1024, 1024, device=tensors[0].device)
    around = Context(layout=layout, scale=SCALE)
    halves = tuple(x.to(dtype) for x in tensors)
    found, wanted = (
        attend(*given, policy="xattention@keep=3", context=around, engine=name).output
        for given, name in ((halves, engine), (tensors, "ref"))
    )
    return output_error(found, wanted)


@pytest.mark.slow
@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="compiled FlexAttention gives what the definition gives",
    measures="output error on a GPU, fp32, 1024 tokens",
    at_most=1e-2,
    grade=Grade.HARDWARE,
)
def test_flex_gives_the_definition_on_a_gpu() -> float:
    return engine_gap("flex", gpu_problem(), torch.float32)


@pytest.mark.slow
@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="the Triton kernel gives what the definition gives",
    measures="output error on a GPU, bfloat16, 1024 tokens",
    at_most=2e-2,
    grade=Grade.HARDWARE,
)
def test_triton_gives_the_definition_on_a_gpu() -> float:
    return engine_gap("triton", gpu_problem(), torch.bfloat16)
