"""Claims of formats of smaller attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from blockwright import pipeline
from blockwright.types import Budget, Plan
from tests.claims.ledger import Grade, claim
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

MEASURES = "|stored bytes of attention / the whole one's - share|, blocks chosen, random llama"


def share_errors(candidate: str, share: float, folder: ModelFolder, work: Path) -> Iterator[float]:
    """For every block with smaller attention, in the folder that a fit writes and loads again."""
    model = with_tokenizer(folder("llama"), work)
    result = pipeline.fit(request(model, work, candidates=(candidate,), budget=Budget(bits=29.0)))
    chosen = [s for s, c in Plan.read(result.plan_path).choices.items() if c.key]
    assert chosen
    for site in chosen:
        block = site.partition(".self_attn")[0]
        smaller, whole = (attention_bytes(each, block) for each in (result.out, model))
        yield abs(smaller / whole - share)


def attention_bytes(folder: Path, block: str) -> int:
    """Of all tensors of a block's attention."""
    stored = load_file(folder / "model.safetensors")
    mine = [tensor for name, tensor in stored.items() if name.startswith(f"{block}.self_attn.")]
    return sum(tensor.numel() * tensor.element_size() for tensor in mine)


@pytest.mark.slow
@claim(
    method="heads",
    paper="none; smaller matrices",
    says="half of the key-value heads, with the query heads that read them, take half of the bytes",
    measures=MEASURES,
    grade=Grade.HARD,
    at_most=0.0,
)
def test_half_of_the_heads_take_half_of_the_bytes(
    model_folder: ModelFolder, tmp_path: Path
) -> Iterator[float]:
    yield from share_errors("heads-p50", 0.5, model_folder, tmp_path)


@pytest.mark.slow
@claim(
    method="headdim",
    paper="none; smaller matrices",
    says="half of the dimensions of all heads take half of the bytes",
    measures=MEASURES,
    grade=Grade.HARD,
    at_most=0.0,
)
def test_half_of_the_dimensions_take_half_of_the_bytes(
    model_folder: ModelFolder, tmp_path: Path
) -> Iterator[float]:
    yield from share_errors("headdim-p50", 0.5, model_folder, tmp_path)
