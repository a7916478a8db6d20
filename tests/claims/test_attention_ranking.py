"""Claims about policies that follow documents (BlockRank) and compressed runs (NSA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from blockwright.attention import Context, Layout, attend
from blockwright.attention.metrics import mass_recall, visited_tiles
from blockwright.attention.planted import PRESETS, plant
from blockwright.attention.policies.blockrank import BlockRank, ranking_loss, relevance
from blockwright.attention.policies.nsa import Nsa
from blockwright.attention.policies.random import Random
from tests.claims.ledger import Grade, claim

SCALE = 0.125


def spans_of(documents: int, length: int, seed: int | None = None) -> Tensor:
    """Instruction, documents and query; of random lengths with a seed."""
    sizes = torch.full((documents + 2,), length)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(length // 2, length, (documents + 2,), generator=generator)
    return torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])


def tensors(tokens: int, heads: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, tokens, 64, generator=generator) for _ in range(3))
    return q, k, v


def ranked(q: Tensor, k: Tensor, v: Tensor, spans: Tensor) -> Tensor:
    tokens = q.shape[2]
    around = Context(layout=Layout.plain(tokens, tokens), scale=SCALE, spans=spans)
    return attend(q, k, v, policy=BlockRank(block=16), context=around).output


# -- BlockRank


@claim(
    method="blockrank",
    family="attention",
    paper=BlockRank.paper,
    says="it is attention under an explicit mask of instruction, own document and query",
    measures="greatest difference from masked softmax attention, 6 documents of random lengths",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_blockrank_is_masked_attention() -> float:
    spans = spans_of(6, 40, seed=0)
    tokens = int(spans[-1])
    q, k, v = tensors(tokens)
    part = torch.repeat_interleave(torch.arange(8), spans.diff())
    own = part[:, None] == part
    seen = (own | (part == 0) | (part == 7)[:, None]).tril()
    scores = (q @ k.mT * SCALE).masked_fill(~seen, -torch.inf)
    return float((ranked(q, k, v, spans) - torch.softmax(scores, -1) @ v).abs().max())


@claim(
    method="blockrank",
    family="attention",
    paper=BlockRank.paper,
    says="cost grows with the number of documents, not with its square",
    measures="tiles visited with 60 documents over those with 30, parts of 64 tokens (dense: 3.8)",
    at_most=2.1,
    grade=Grade.HARD,
)
def test_blockrank_is_linear_in_documents() -> float:
    found = []
    for documents in (30, 60):
        spans = spans_of(documents, 64)
        tokens = int(spans[-1])
        q, k, v = tensors(tokens)
        around = Context(layout=Layout.plain(tokens, tokens), scale=SCALE, spans=spans)
        selection = BlockRank(block=32).choose(q, k, v, around).selection
        assert selection is not None
        found.append(visited_tiles(selection))
    return found[1] / found[0]


@claim(
    method="blockrank",
    family="attention",
    paper=BlockRank.paper,
    says="the order of the documents does not matter",
    measures="greatest change of the query's outputs, and of the relevances that moved along",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_the_order_of_documents_does_not_matter() -> Iterator[float]:
    spans = spans_of(6, 32)
    q, k, v = tensors(int(spans[-1]), heads=2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    middle = (32 + 32 * order[:, None] + torch.arange(32)).flatten()
    slots = torch.cat([torch.arange(32), middle, torch.arange(7 * 32, 8 * 32)])
    moved = q[:, :, slots], k[:, :, slots], v[:, :, slots]
    change = ranked(*moved, spans) - ranked(q, k, v, spans)[:, :, slots]
    yield float(change[:, :, 7 * 32 :].abs().max())
    before = relevance(q[:, :, -2:], k, spans, SCALE)
    after = relevance(moved[0][:, :, -2:], moved[1], spans, SCALE)
    yield float((after - before[:, order]).abs().max())


def matched(
    seed: int, queries: int = 64, documents: int = 20
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [n, 1, 1, 64], keys [n, 1, N, 64], the relevant document of each, and the spans:
    some keys of one document like the query by 6 nats."""
    generator = torch.Generator().manual_seed(seed)
    spans = spans_of(documents, 16)
    q = torch.randn(queries, 1, 1, 64, generator=generator)
    k = torch.randn(queries, 1, int(spans[-1]), 64, generator=generator)
    chosen = torch.randint(documents, (queries,), generator=generator)
    toward = q / (q.square().sum(-1, keepdim=True) * SCALE) * 6
    for row, document in enumerate(chosen.tolist()):
        first = int(spans[1 + document])
        k[row, :, first : first + 4] += toward[row]
    return q, k, chosen, spans


def accuracy(q: Tensor, k: Tensor, chosen: Tensor, spans: Tensor) -> float:
    return float((relevance(q, k, spans, SCALE).argmax(-1) == chosen).float().mean())


@claim(
    method="blockrank",
    family="attention",
    paper=BlockRank.paper,
    says="what the last tokens look at names the relevant document",
    measures="share of 64 queries whose planted match (6 nats) of 20 documents is first, 3 seeds",
    at_least=0.95,
    grade=Grade.FIRM,
)
def test_attention_ranks_documents() -> Iterator[float]:
    for seed in range(3):
        yield accuracy(*matched(seed))


@claim(
    method="blockrank",
    family="attention",
    paper=BlockRank.paper,
    says="the contrastive loss on attention teaches it to rank",
    measures="accuracy after 50 Adam steps on a random query projection, 20 documents, 256 queries",
    at_least=0.8,
    grade=Grade.FIRM,
)
def test_the_ranking_loss_teaches() -> float:
    q, k, chosen, spans = matched(0, queries=256)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    hidden = q @ mixing
    projection = (torch.randn(64, 64, generator=generator) / 8).requires_grad_()
    relevant = torch.nn.functional.one_hot(chosen, 20).bool()
    optimizer = torch.optim.Adam([projection], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        loss = ranking_loss(relevance(hidden @ projection, k, spans, SCALE), relevant)
        loss.backward()
        optimizer.step()
    return accuracy((hidden @ projection).detach(), k, chosen, spans)


# -- NSA


@claim(
    method="nsa",
    family="attention",
    paper=Nsa.paper,
    says="its branches are separate softmaxes, mixed by gates",
    measures="greatest difference from the three written out, 160 tokens, runs of 8 every 4",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_nsa_is_three_softmaxes() -> float:
    tokens, block = 160, 16
    q, k, v = tensors(tokens)
    around = Context(layout=Layout.plain(tokens, tokens), scale=SCALE)
    policy = Nsa(
        block=block, run=8, hop=4, keep=5, selected=0.5, compressed=0.3, windowed=0.2, reach=20
    )
    got = attend(q, k, v, policy=policy, context=around).output[0, 0]
    runs = (tokens - 8) // 4 + 1
    first = 4 * torch.arange(runs)
    members = first[:, None] + torch.arange(8)
    keys, values = k[0, 0][members].mean(1), v[0, 0][members].mean(1)
    row = torch.arange(tokens)
    ended = first + 7 <= row[:, None]
    P = softmax_over(q[0, 0] @ keys.T, ended)
    score = P @ runs_in_blocks(first, tokens // block, block)
    own = row // block
    distance = own[:, None] - torch.arange(tokens // block)
    ranks = score.masked_fill((distance >= 0) & (distance <= 2), torch.inf)
    ranks[:, 0] = torch.inf
    ranks = ranks.masked_fill(distance < 0, -torch.inf)
    kept = torch.zeros_like(ranks, dtype=torch.bool)
    kept.scatter_(1, ranks.sort(descending=True, stable=True).indices[:, :5], True)
    causal = row <= row[:, None]
    selected = softmax_over(q[0, 0] @ k[0, 0].T, kept.repeat_interleave(block, 1) & causal)
    near = softmax_over(q[0, 0] @ k[0, 0].T, causal & (row[:, None] - row < 20))
    wanted = 0.5 * selected @ v[0, 0] + 0.3 * P @ values + 0.2 * near @ v[0, 0]
    return float((got - wanted).abs().max())


def softmax_over(scores: Tensor, seen: Tensor) -> Tensor:
    return torch.softmax((scores * SCALE).masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)


def runs_in_blocks(first: Tensor, blocks: int, block: int) -> Tensor:
    """[r, nk]: which part of the eight tokens of each run lies in each block."""
    owner = (first[:, None] + torch.arange(8)) // block
    return torch.nn.functional.one_hot(owner, blocks).float().mean(1)


@claim(
    method="nsa",
    family="attention",
    paper=Nsa.paper,
    says="compressed attention finds the blocks that matter",
    measures="recall above random's at equal blocks kept, cluster and mixed, 16 of 64, 4096 tokens",
    at_least=0.2,
    grade=Grade.FIRM,
)
def test_compressed_keys_find_blocks() -> Iterator[float]:
    around = Context(layout=Layout.plain(4096, 4096), scale=SCALE)
    for preset in ("cluster", "mixed"):
        data = plant(replace(PRESETS[preset]), 4096)
        found = []
        for policy in (Nsa(), Random(query_block=1, key_block=64, keep=16)):
            choice = policy.choose(data.q, data.k, data.v, around)
            found.append(mass_recall(data.q, data.k, choice, around, rows=512))
        yield found[0] - found[1]
