"""Claims about XAttention, and about engines for GPUs, on planted data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from blockwright.attention import Context, Layout, attend
from blockwright.attention.budget import meet_density
from blockwright.attention.head_thresholds import fit_heads
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.planted import PRESETS, Planted, plant
from blockwright.attention.policies.xattention import XAttention
from blockwright.registry import policy_named
from tests.claims.attention_cases import (
    SCALE,
    context,
    recall,
)
from tests.claims.ledger import Grade, claim

MEANS_OF_SIX = "mean@query_block=64,key_block=64,keep=6"


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


@pytest.mark.slow
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


@pytest.mark.slow
@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="antidiagonals see diagonals that pooled means miss",
    measures="recall above pooled means' on slash, mean of 6 draws, 2048 tokens, 6 of 32 tiles",
    at_least=0.1,
    grade=Grade.FIRM,
)
def test_antidiagonals_see_diagonals() -> float:
    gains, around = [], context(2048)
    for seed in range(6):
        data = plant(PRESETS["slash"], 2048, seed=seed)
        found = [
            mass_recall(data.q, data.k, policy.choose(data.q, data.k, data.v, around), around)
            for policy in (XAttention(block=64, stride=8, keep=6), policy_named(MEANS_OF_SIX))
        ]
        gains.append(found[0] - found[1])
    return sum(gains) / len(gains)


@pytest.mark.slow
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


@pytest.mark.slow
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
