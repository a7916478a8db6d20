"""Lossless, sorted and block floating point formats, fitted, written, loaded and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockwright import pipeline
from blockwright.types import Budget, Preset
from tests.fits import request, with_tokenizer
from tests.models import tiny_model

CANDIDATES = {"df11": 12.5, "ksort+bfp4-b32": 6.0, "bfp5-b32": 6.0}
"""With a budget that holds them."""


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_it_is_fitted_and_loads(candidate: str, tmp_path: Path) -> None:
    plain = tiny_model("llama", tmp_path / "plain", dtype=torch.bfloat16, intermediate_size=128)
    asked = request(
        with_tokenizer(plain, tmp_path),
        tmp_path,
        budget=Budget(bits=CANDIDATES[candidate]),
        candidates=(candidate,),
        preset=Preset.FAST,
    )
    result = pipeline.fit(asked)
    assert result.unavailable == {}
    plan = json.loads(result.plan_path.read_text(encoding="utf-8"))
    assert candidate in {choice["candidate"] for choice in plan["choices"].values()}
    assert result.bits_per_weight <= CANDIDATES[candidate]
    if candidate == "df11":
        assert result.fitted.kl_divergence == 0
