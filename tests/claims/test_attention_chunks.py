"""Claims about trained chunk selection (ChunkLLM), on planted topics."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from blockwright.attention import Context, Layout
from blockwright.attention.chunking import (
    BoundaryDetector,
    ChunkScorer,
    distillation_loss,
    teacher_mass,
)
from blockwright.attention.policies.chunkllm import ChunkLlm
from tests.claims.ledger import Grade, claim

HEADS, WIDTH, SCALE, TOPICS = 4, 64, 0.125, 8


class Story(NamedTuple):
    """Chunks of 40 to 160 tokens that are about one topic, and ask for one."""

    q: Tensor
    k: Tensor
    chunk_of: Tensor
    ends: Tensor


@cache
def story(seed: int, tokens: int = 1024) -> Story:
    """q, k [1, 4, N, 64]: heads see the topics through their own directions."""
    fixed = torch.Generator().manual_seed(99)
    topics = torch.randn(HEADS, TOPICS, WIDTH, generator=fixed)
    topics = topics / topics.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(40, 161, (tokens // 40,), generator=generator)
    number = torch.arange(len(sizes)).repeat_interleave(sizes)[:tokens]
    about, wants = torch.randint(TOPICS, (2, len(sizes)), generator=generator)
    noise = 0.4 * torch.randn(2, HEADS, tokens, WIDTH, generator=generator)
    amplitude = (8 / SCALE) ** 0.5
    q = noise[0] + amplitude * topics[:, wants[number]]
    k = noise[1] + amplitude * topics[:, about[number]]
    ends = torch.nn.functional.pad(number[1:] != number[:-1], (0, 1))
    return Story(q[None], k[None], number[None], ends[None])


def scores_of(scorer: ChunkScorer, found: Story) -> tuple[Tensor, Tensor]:
    """Student scores and teacher mass [1, N, C] of complete chunks."""
    last = torch.cat([found.ends[0].nonzero()[:, 0], torch.tensor([found.q.shape[2] - 1])])
    teacher = teacher_mass(found.q, found.k, found.chunk_of, SCALE)
    return scorer(found.q, found.k[:, :, last]), teacher


@cache
def trained() -> tuple[ChunkScorer, ChunkScorer]:
    """Adapters before and after 150 Adam steps on eight stories."""
    torch.manual_seed(0)
    scorer, untrained = (ChunkScorer(HEADS, HEADS, WIDTH) for _ in range(2))
    optimizer = torch.optim.Adam(scorer.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss = distillation_loss(*scores_of(scorer, story(step % 8)))
        loss.backward()
        optimizer.step()
    return untrained, scorer


def kept_mass(scorer: ChunkScorer, found: Story, *, reused: bool = False) -> float:
    """Teacher mass on the best quarter of the chunks, mean over rows that have past chunks.

    ``reused``: each chunk keeps what the token before its first one chose.
    """
    with torch.no_grad():
        scores, teacher = scores_of(scorer, found)
    chunks = teacher.shape[-1]
    past = torch.arange(chunks) < found.chunk_of[0, :, None]
    scores = scores[0].masked_fill(~past, -torch.inf)
    if reused:
        first = torch.searchsorted(found.chunk_of[0], found.chunk_of[0].unique())
        scores = scores[first][found.chunk_of[0]]
    chosen = scores.topk(chunks // 4).indices
    mass = (teacher[0].gather(1, chosen) * past.gather(1, chosen)).sum(-1)
    return float(mass[found.chunk_of[0] > chunks // 2].mean())


@pytest.mark.slow
@claim(
    method="chunkllm",
    family="attention",
    paper=ChunkLlm.paper,
    says="small adapters learn from the model's own attention which chunks matter",
    measures="teacher mass on the best quarter of the chunks, unseen stories; less untrained +0.65",
    at_least=0.85,
    grade=Grade.FIRM,
)
def test_adapters_learn_the_teacher() -> Iterator[float]:
    untrained, scorer = trained()
    found = [kept_mass(scorer, story(seed)) for seed in (100, 101, 102)]
    bare = [kept_mass(untrained, story(seed)) for seed in (100, 101, 102)]
    yield sum(found) / 3
    yield sum(found) / 3 - sum(bare) / 3 + 0.65


@pytest.mark.slow
@claim(
    method="chunkllm",
    family="attention",
    paper=ChunkLlm.paper,
    says="one choice serves a whole chunk",
    measures="teacher mass lost by reusing the choice of a chunk's first token, unseen stories",
    at_most=0.05,
    grade=Grade.FIRM,
)
def test_a_choice_is_reused_within_a_chunk() -> Iterator[float]:
    _, scorer = trained()
    for seed in (100, 101, 102):
        found = story(seed)
        yield kept_mass(scorer, found) - kept_mass(scorer, found, reused=True)


@claim(
    method="chunkllm",
    family="attention",
    paper=ChunkLlm.paper,
    says="a choice is made where a chunk ends, and nowhere else",
    measures="different far lists less chunks, 1024 tokens, three stories",
    at_most=0,
    grade=Grade.HARD,
)
def test_there_is_one_choice_per_chunk() -> Iterator[float]:
    for seed in range(3):
        found = story(seed)
        tokens = found.q.shape[2]
        context = Context(layout=Layout.plain(tokens, tokens), scale=SCALE, ends=found.ends)
        policy = ChunkLlm(keep=2, local=1, block=1)
        selection = policy.choose(found.q, found.k, found.k, context).selection
        assert selection is not None
        lists = selection.to_mask(tokens)[0, 0]
        chunk = found.chunk_of[0]
        far = lists & (chunk < chunk[:, None])
        yield float(len(far.unique(dim=0)) - int(chunk.max()) - 1)


@claim(
    method="chunkllm",
    family="attention",
    paper=ChunkLlm.paper,
    says="a hidden layer finds where chunks end",
    measures="F1 of the boundary detector on unseen tokens, boundaries marked in one channel",
    at_least=0.95,
    grade=Grade.FIRM,
)
def test_boundaries_are_found() -> float:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 4096, 32, generator=generator)
    ends = torch.rand(2, 4096, generator=generator) < 0.02
    hidden[..., 5] += 6.0 * ends
    detector = BoundaryDetector(32)
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        detector.loss(hidden[:1], ends[:1]).backward()
        optimizer.step()
    found = detector.ends(hidden[1:], longest=10**6)
    right = float((found & ends[1:]).sum())
    return 2 * right / float(found.sum() + ends[1:].sum())
