"""A plan quantizes KV caches where memory is the limit, and the folder says so."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import blockwright
from blockwright import pipeline
from blockwright.errors import BudgetError, CandidateError, PlanError
from blockwright.kvcache import QuantizedLayer
from blockwright.types import Budget, Choice, FitRequest, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer

KV = ("int8@page=8,window=8", "int4@page=8,window=8")
SITES = [f"model.layers.{index}.kv_cache" for index in range(3)]


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path) -> FitRequest:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    options: dict[str, Any] = {
        "preset": Preset.FAST,
        "candidates": ("int8:rtn",),
        "budget": Budget(ratio=0.6, ram_bytes=1 << 30, context=128),
        "kv": KV,
    }
    return request(model, tmp_path, **options)


def below_ordinary(asked: FitRequest) -> Budget:
    """A little less memory than the smallest plan with ordinary caches takes."""
    impossible = Budget(ram_bytes=1, context=128)
    never = replace(asked, kv=("keep",), out=asked.out.with_name("never"), budget=impossible)
    with pytest.raises(BudgetError) as refused:
        pipeline.fit(never)
    least = re.search(r"smallest plan takes (\d+) bytes of memory at 128", str(refused.value))
    assert least is not None
    return Budget(ram_bytes=int(least[1]) - 1000, context=128)


def caches_of(folder: Path) -> dict[str, str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config", {}).get("cache", {})
    return {layer: spec["format"] for layer, spec in found.items()}


def test_caches_are_quantized_where_memory_is_the_limit(asked: FitRequest, tmp_path: Path) -> None:
    loose = Plan.read(pipeline.fit(asked).plan_path)
    assert {loose.choices[site].candidate for site in SITES} == {"keep"}
    assert caches_of(asked.out) == {}
    tight = replace(asked, out=tmp_path / "tight", budget=below_ordinary(asked))
    result = pipeline.fit(tight)
    plan = Plan.read(result.plan_path)
    assert plan.ram_bytes is not None
    assert tight.budget is not None
    assert plan.ram_bytes <= (tight.budget.ram_bytes or 0)
    chosen = {site: plan.choices[site].candidate for site in SITES}
    assert set(chosen.values()) & set(KV)
    assert caches_of(tight.out) == {
        site.split(".")[2]: name for site, name in chosen.items() if name != "keep"
    }
    assert any(note.startswith("KV cache: int") for note in result.notes)
    assert result.limits.ram_bytes_measured is not None

    shutil.copytree(tight.out, tmp_path / "first")
    shutil.rmtree(tight.out)
    pipeline.fit(tight)
    assert folder_bytes(tight.out) == folder_bytes(tmp_path / "first")
    check_generation(tight.out, {int(layer) for layer in caches_of(tight.out)})
    check_edited(replace(asked, out=tmp_path / "edited"), plan, tmp_path)


def check_generation(folder: Path, quantized: set[int]) -> None:
    """Plain transformers has its own cache; ours is given to it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(40)[None] + 3
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    own = model.generate(ids, **options)
    assert type(own.past_key_values).__name__ == "DynamicCache"
    given = model.generate(ids, past_key_values=blockwright.kv_cache(model), **options)
    kinds = [isinstance(layer, QuantizedLayer) for layer in given.past_key_values.layers]
    assert {index for index, ours in enumerate(kinds) if ours} == quantized
    assert blockwright.generate_text(str(folder), "words " * 8, max_new_tokens=4)
    model.save_pretrained(folder.with_name("saved"))
    assert caches_of(folder.with_name("saved")) == caches_of(folder)


def check_edited(asked: FitRequest, plan: Plan, tmp_path: Path) -> None:
    """A plan file may name other formats, at caches that are there."""
    changed = Choice(candidate="int2@page=8,window=0", stored_bytes=0, loss=0.0)
    edited = replace(plan, choices={**plan.choices, SITES[0]: changed})
    edited.write(tmp_path / "edited.json")
    asked = replace(asked, budget=None, plan=tmp_path / "edited.json")
    pipeline.fit(asked)
    assert caches_of(asked.out)["0"] == "int2@page=8,window=0"
    wrong = {**plan.choices, "model.layers.7.kv_cache": changed}
    replace(plan, choices=wrong).write(tmp_path / "edited.json")
    with pytest.raises(PlanError, match=r"names model.layers.7.kv_cache, which"):
        pipeline.fit(replace(asked, out=tmp_path / "never"))


def test_formats_that_cannot_be_are_refused_or_unavailable(asked: FitRequest) -> None:
    with pytest.raises(CandidateError, match="give int1 to int8"):
        pipeline.fit(replace(asked, kv=("int9",)))
    with pytest.raises(BudgetError, match="chosen under a limit on memory; give --ram"):
        pipeline.fit(replace(asked, budget=Budget(bits=8)))
    result = pipeline.fit(replace(asked, kv=()))
    assert "never leave its window" in result.unavailable["KV caches int4"]
    assert not set(SITES) & set(Plan.read(result.plan_path).choices)
