"""``fit`` with formats beside int, end to end on tiny models: weights as they are, transposed with
a bias, of experts; tied tables.  ``fit`` itself compares the reloaded folder with the assembled
one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright import pipeline
from blockwright.pipeline import probing
from blockwright.types import Budget, FitRequest, FitResult, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 128},
    "gpt2": {"n_inner": 128},
    "qwen3_moe": {"moe_intermediate_size": 64},
}
RATIOS = {"llama": 0.38, "gpt2": 0.3, "qwen3_moe": 0.3}
CODEBOOKS = ("nf4-g32", "nf3-g32-dq:gptq", "fp-e2m2-g64", "dyn8-row", "affine3-g32:hqq")
SUM = "int3-g32&rank-r4"
FEW_BITS = ("bin-p20", "vq256-d4-row", "vq64-d2-g32", "dyadic8")
ROWS = ("mix-p20-g32", "llmint8-p2", "affine1-row")


@pytest.mark.parametrize(
    "kind",
    ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "qwen3_moe"))],
)
def test_codebooks_stand_everywhere(kind: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder(kind, **SHAPES[kind]), tmp_path)
    result = pipeline.fit(
        request(model, tmp_path, candidates=CODEBOOKS, budget=Budget(ratio=RATIOS[kind]))
    )
    chosen = {choice.candidate for choice in Plan.read(result.plan_path).choices.values()}
    assert len(chosen & set(CODEBOOKS)) >= 2
    assert result.size_bytes <= RATIOS[kind] * result.original_size_bytes


def test_rows_by_sensitivity_are_refined_and_healed(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    _, result = fitted_rows("llama", model_folder, tmp_path)
    chosen = {choice.candidate for choice in Plan.read(result.plan_path).choices.values()}
    assert "mix-p20-g32" in chosen
    assert result.bits_per_weight <= 6.3


@pytest.mark.slow
def test_rows_by_sensitivity_are_built_again_alike(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    asked, _ = fitted_rows("gpt2", model_folder, tmp_path)
    pipeline.fit(replace(asked, out=tmp_path / "again", library=tmp_path / "other"))
    before, after = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "again")
    assert before["model.safetensors"] == after["model.safetensors"]


def fitted_rows(kind: str, model_folder: ModelFolder, work: Path) -> tuple[FitRequest, FitResult]:
    """A fit that refines and heals."""
    model = with_tokenizer(model_folder(kind, **SHAPES[kind]), work)
    budget = Budget(bits=6.3)
    asked = request(model, work, candidates=ROWS, budget=budget, preset=Preset.BALANCED)
    return asked, pipeline.fit(asked)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("llama", Preset.FAST),
        *(
            pytest.param(kind, Preset.BALANCED, marks=pytest.mark.slow)
            for kind in ("llama", "gpt2", "qwen3_moe")
        ),
    ],
)
def test_vectors_signs_and_integers_are_fitted(
    kind: str, preset: Preset, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Refined and healed, in balanced."""
    model = with_tokenizer(model_folder(kind, **SHAPES[kind]), tmp_path)
    offered = FEW_BITS if preset is Preset.BALANCED else FEW_BITS[:2]
    asked = request(model, tmp_path, candidates=offered, budget=Budget(bits=4.5), preset=preset)
    result = pipeline.fit(asked)
    chosen = {choice.candidate for choice in Plan.read(result.plan_path).choices.values()}
    assert chosen & set(FEW_BITS)
    assert result.bits_per_weight <= 4.5


@pytest.mark.slow
def test_sums_are_fitted(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", **SHAPES["llama"]), tmp_path)
    budget = Budget(bits=7)
    result = pipeline.fit(request(model, tmp_path, candidates=(SUM, "int8:rtn"), budget=budget))
    chosen = {choice.candidate for choice in Plan.read(result.plan_path).choices.values()}
    assert SUM in chosen


def test_rows_by_sensitivity_are_priced(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ask_fresh_process", lambda loading: time.sleep(0.01))
    model = with_tokenizer(model_folder("llama", **SHAPES["llama"]), tmp_path)
    assert pipeline.price(request(model, tmp_path, candidates=ROWS, budget=Budget(bits=7)))
