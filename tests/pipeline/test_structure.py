"""``fit`` with structural candidates: low rank and sparse weights beside quantized ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.types import Budget, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer


@pytest.mark.parametrize(
    ("kind", "shape", "candidates"),
    [
        ("gpt2", {"n_inner": 128}, ("rank-p50", "sparse2of4", "id-p75+int8", "ranks-t300")),
        ("qwen3_moe", {"moe_intermediate_size": 64}, ("rank-p50", "sparse2of4", "int4-g64")),
    ],
)
def test_a_mixed_plan_keeps_its_budget(
    kind: str,
    shape: dict[str, int],
    candidates: tuple[str, ...],
    model_folder: ModelFolder,
    tmp_path: Path,
) -> None:
    model = with_tokenizer(model_folder(kind, **shape), tmp_path)
    asked = request(model, tmp_path, candidates=candidates, budget=Budget(bits=7.0))
    result = pipeline.fit(asked)
    assert result.bits_per_weight <= 7.0
    assert not result.unavailable
    used = {choice.candidate for choice in Plan.read(result.plan_path).choices.values()}
    assert len(used) >= 2


def test_tied_tables_and_shapes_that_a_structure_cannot_take_keep_their_weights(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("gemma3", intermediate_size=100), tmp_path)
    candidates = ("sparse2of8", "rank-p50")
    asked = request(
        model, tmp_path, candidates=candidates, budget=Budget(ratio=0.8), preset=Preset.FAST
    )
    result = pipeline.fit(asked)
    downs = (f"model.layers.{block}.mlp.down_proj sparse2of8" for block in range(3))
    assert set(result.unavailable) == set(downs)
    reason = next(iter(result.unavailable.values()))
    assert "100 inputs are not whole groups of 8" in reason
    plan = Plan.read(result.plan_path)
    assert plan.choices["model.embed_tokens"].candidate == "keep"
    assert result.size_bytes <= 0.8 * result.original_size_bytes
