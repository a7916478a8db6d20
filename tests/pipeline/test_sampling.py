"""Default calibration text: half of it from the model itself, decided once, and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright import pipeline
from blockwright.evaluate import Sampling
from blockwright.pipeline import sampling
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.sampling import documents_of, wanted_windows, with_sampled_text
from blockwright.progress import SilentProgress
from blockwright.types import FitRequest
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

MARK = 77
"""A token that stands for sampled text."""


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path) -> FitRequest:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    return request(model, tmp_path, calibration=None, sampled_share=0.5)


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> list[Sampling]:
    """What the sampling process was asked; it answers at once."""
    asked: list[Sampling] = []

    def answer(loading: Any, wanted: Sampling, folder: Path, advance: Any) -> torch.Tensor:
        asked.append(wanted)
        return torch.full((wanted.documents, wanted.length), MARK)

    monkeypatch.setattr(sampling, "sample_documents", answer)
    return asked


def opened(asked: FitRequest) -> Run:
    return open_run(asked, SilentProgress())


def test_half_is_sampled_spread_over_the_whole_and_said(
    asked: FitRequest, asks: list[Sampling]
) -> None:
    before = opened(asked)
    run = with_sampled_text(before)
    ids = run.texts.calibration.ids
    assert ids.shape == before.texts.calibration.ids.shape == (16, 64)
    sampled = (ids == MARK).all(1)
    assert int(sampled.sum()) == 8
    assert int(sampled[:8].sum()) == 4
    assert torch.equal(ids[~sampled], before.texts.calibration.ids[:8])
    assert run.texts.notes[0] == (
        "calibration text: 512 tokens sampled from the model itself, 512 shipped with Blockwright"
        " (Python's standard library)"
    )
    assert [(ask.documents, ask.length, ask.start) for ask in asks] == [(8, 64, (1,))]
    assert run.texts.calibration.digest != before.texts.calibration.digest
    assert run.texts.selection is before.texts.selection


def test_it_is_sampled_once_per_library_and_seed(asked: FitRequest, asks: list[Sampling]) -> None:
    first = with_sampled_text(opened(asked))
    again = with_sampled_text(opened(asked))
    assert len(asks) == 1
    assert again.statistics_digest == first.statistics_digest
    with_sampled_text(opened(replace(asked, seed=1)))
    assert [ask.seed for ask in asks] == [0, 1]


def test_where_memory_is_short_it_is_skipped_by_name_and_stays_skipped(
    asked: FitRequest, asks: list[Sampling], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "available_bytes", lambda: 10**6)
    before = opened(asked)
    run = with_sampled_text(before)
    assert run.texts.calibration.digest == before.texts.calibration.digest
    assert "none sampled from the model itself: it needs" in run.texts.notes[0]
    monkeypatch.setattr(sampling, "available_bytes", lambda: 10**12)
    assert with_sampled_text(opened(asked)).texts.notes == run.texts.notes
    assert asks == []


def test_a_model_too_large_writes_less_and_then_nothing(
    asked: FitRequest, asks: list[Sampling], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = opened(asked).skeleton.linear_weights
    monkeypatch.setattr(sampling, "LARGEST_WORK", 3.5 * 64 * weights)
    assert wanted_windows(opened(asked)).windows == 3
    monkeypatch.setattr(sampling, "LARGEST_WORK", 0.5 * 64 * weights)
    run = with_sampled_text(opened(asked))
    assert "weights would take too long" in run.texts.notes[0]
    assert asks == []


def test_encoders_write_nothing_and_it_is_said(
    model_folder: ModelFolder, tmp_path: Path, asks: list[Sampling]
) -> None:
    model = with_tokenizer(model_folder("bert", intermediate_size=128), tmp_path)
    run = with_sampled_text(opened(request(model, tmp_path, calibration=None)))
    assert run.texts.notes[0].endswith(
        "none sampled from the model itself: it has no language head"
    )
    assert asks == []


def test_named_text_is_used_alone_unless_a_share_is_asked(
    asked: FitRequest, asks: list[Sampling], tmp_path: Path
) -> None:
    named = replace(asked, calibration=tmp_path / "texts", sampled_share=None)
    before = opened(named)
    assert with_sampled_text(before).texts == before.texts
    shared = with_sampled_text(opened(replace(named, sampled_share=0.25)))
    assert int((shared.texts.calibration.ids == MARK).all(1).sum()) == 4


def test_long_windows_hold_several_documents() -> None:
    assert documents_of(3, 2048) == (12, 512)
    assert documents_of(3, 600) == (6, 300)
    assert documents_of(3, 64) == (3, 64)


def test_a_fit_samples_and_says_so(asked: FitRequest) -> None:
    result = pipeline.fit(replace(asked, candidates=("int3-g32:rtn", "int8:rtn")))
    assert "512 tokens sampled from the model itself" in result.notes[0]
