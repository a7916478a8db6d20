"""The model card: front matter the hub reads, the figures that were measured, the licence."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from blockwright.checkpoint import ModelSource
from blockwright.pipeline.card import (
    CARD_FILE,
    card_text,
    front_matter,
    model_name,
    original_metadata,
)
from blockwright.pipeline.opening import Run, open_run
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, FitResult, Plan
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer
from tests.pipeline.conftest import fit_here

ORIGINAL_CARD = """---
license: other
license_name: llama-community
language:
- en
---
# A tiny model
"""


@pytest.fixture(scope="module")
def asked(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> FitRequest:
    work = tmp_path_factory.mktemp("card")
    model = with_tokenizer(model_folder("llama", intermediate_size=128), work)
    (model / "README.md").write_text(ORIGINAL_CARD, encoding="utf-8")
    (model / "LICENSE.txt").write_text("be good\n", encoding="utf-8")
    candidates = ("int4-g32:rtn", "int8:rtn")
    return request(model, work, candidates=candidates, budget=Budget(bits=5.5))


@pytest.fixture(scope="module")
def result(asked: FitRequest) -> FitResult:
    return fit_here(asked)


@pytest.fixture
def run(asked: FitRequest, tmp_path: Path) -> Run:
    return open_run(replace(asked, out=tmp_path / "out"), SilentProgress())


def front_matter_of(text: str) -> dict[str, Any]:
    """What the hub's own reader finds."""
    data: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return data


def test_the_card_has_what_the_hub_reads_and_what_was_measured(
    asked: FitRequest, result: FitResult
) -> None:
    card = ModelCard.load(result.out / CARD_FILE)
    data = front_matter_of(card.content)
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["blockwright", "quantized"]
    assert data["pipeline_tag"] == "text-generation"
    assert (data["license"], data["license_name"]) == ("other", "llama-community")
    assert data["language"] == ["en"]
    assert f"| size, bytes | {result.original_size_bytes:,} | {result.size_bytes:,} (" in card.text
    assert f"| bits per weight |  | {result.bits_per_weight:.3f} |" in card.text
    assert f"| perplexity | {result.original.perplexity:.3f} |" in card.text
    assert f" {result.fitted.kl_divergence:.5f} |" in card.text
    assert "tokens/s" not in card.text
    assert "seed 0" in card.text
    assert "1 thread" in card.text
    assert "licence holds for this model too: llama-community.  Copied from it: `LICENSE.txt`" in (
        card.text
    )
    assert (result.out / "LICENSE.txt").read_text(encoding="utf-8") == "be good\n"
    assert asked.model not in card.content


def test_the_table_counts_every_site_once(result: FitResult) -> None:
    plan = Plan.read(result.plan_path)
    text = (result.out / CARD_FILE).read_text(encoding="utf-8")
    chosen = text.partition("## What was chosen")[2].partition("`blockwright-plan")[0]
    rows = [line.split("|")[1:3] for line in chosen.splitlines() if line.startswith("|")][2:]
    counts: dict[str, int] = {}
    for place, cell in rows:
        for part in cell.split(","):
            count, _, name = part.strip().partition(" x ")
            counts[name.strip("`")] = counts.get(name.strip("`"), 0) + int(count)
            assert place.strip()
    linears = [choice.candidate for choice in plan.choices.values()]
    for name in ("int4-g32:rtn", "int8:rtn"):
        assert counts.get(name, 0) == linears.count(name)
    assert any(place.strip() == "mlp.down_proj" for place, _ in rows)


def test_an_original_of_the_hub_is_named_as_the_base_model(run: Run, result: FitResult) -> None:
    source = ModelSource(run.original.source.path, "owner/name", "0123abc")
    of_hub = replace(run, original=replace(run.original, source=source))
    text = card_text(of_hub, Plan.read(result.plan_path), result)
    data = front_matter_of(text)
    assert data["base_model"] == "owner/name"
    assert data["base_model_relation"] == "quantized"
    assert "from owner/name (revision `0123abc`)" in text
    assert "base_model" not in front_matter(run, {})


def test_the_bundled_model_is_named_as_such(run: Run) -> None:
    folder = Path(str(files("blockwright"))) / "bundled" / "model"
    source = ModelSource(folder, str(folder), None)
    bundled = replace(run, original=replace(run.original, source=source))
    assert model_name(bundled) == "Blockwright's bundled model"
    assert model_name(run) == "model"


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (None, "has no README.md"),
        ("# only a title\n", "has no front matter"),
        ("---\nlicense: [a\n---\n", "cannot be read"),
        ("---\n- a list\n---\n", "cannot be read"),
    ],
)
def test_an_original_without_a_readable_card_is_said(
    card: str | None, reason: str, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    metadata, why = original_metadata(tmp_path)
    assert not metadata
    assert reason in why
    assert "\n" not in why
