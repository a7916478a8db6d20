"""Claims about attention policies in the model that ships, on held-out text of 2,048 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from blockwright.attention.policies.mean import Mean
from blockwright.attention.policies.quest import Quest
from blockwright.attention.policies.xattention import XAttention
from blockwright.cli.demo import bundled_model
from blockwright.pipeline.visiting import QUALITY_POLICIES, attention_quality
from tests.claims.ledger import Grade, claim


@cache
def measured() -> dict[str, Any]:
    """Perplexity over that with the model's own attention, and density, by policy."""
    return attention_quality(str(bundled_model()), tokens=8192)


def judged(name: str) -> Iterator[float]:
    """Change of the perplexity, and by how much the density is over 0.35."""
    (policy,) = [text for text in QUALITY_POLICIES if text.startswith(name)]
    found = measured()[policy]
    yield abs(found["ratio"] - 1)
    yield max(0.0, found["density"] - 0.35)


@pytest.mark.slow
@claim(
    method="xattention",
    family="attention",
    paper=XAttention.paper,
    says="a real model reads on as before when a third of the tiles is visited",
    measures="relative change of perplexity, and density above 0.35; bundled model, 8192 tokens",
    at_most=0.01,
    grade=Grade.FIRM,
)
def test_xattention_keeps_the_perplexity() -> Iterator[float]:
    yield from judged("xattention")


@pytest.mark.slow
@claim(
    method="mean",
    family="attention",
    paper=Mean.paper,
    says="a real model reads on as before when a third of the tiles is visited",
    measures="relative change of perplexity, and density above 0.35; bundled model, 8192 tokens",
    at_most=0.02,
    grade=Grade.FIRM,
)
def test_pooled_means_keep_the_perplexity() -> Iterator[float]:
    yield from judged("mean")


@pytest.mark.slow
@claim(
    method="quest",
    family="attention",
    paper=Quest.paper,
    says="a real model reads on as before when a third of the tiles is visited",
    measures="relative change of perplexity, and density above 0.35; bundled model, 8192 tokens",
    at_most=0.02,
    grade=Grade.FIRM,
)
def test_page_bounds_keep_the_perplexity() -> Iterator[float]:
    yield from judged("quest")
