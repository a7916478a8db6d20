"""Attention whose heads have fewer dimensions: found by trying, planned, assembled, loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockwright import pipeline
from blockwright.pipeline.building import build_library
from blockwright.pipeline.narrowing import parts_to_narrow
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.posing import pose_problem
from blockwright.progress import SilentProgress
from blockwright.types import Budget, PartRole, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import request, tiny_tokenizer, with_tokenizer
from tests.pipeline.test_fit import load

HALF = "headdim-p50"


def opened(model: Path, work: Path, *candidates: str) -> Run:
    asked = request(model, work, candidates=candidates or (HALF,), preset=Preset.FAST)
    return open_run(asked, SilentProgress())


@pytest.mark.parametrize("kind", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
def test_a_plan_with_smaller_heads_loads_and_saves_again(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares placed outputs with zeros in whole matrices."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    asked = request(
        model, tmp_path, candidates=(HALF,), budget=Budget(bits=29.0), preset=Preset.FAST
    )
    result = pipeline.fit(asked)
    assert result.bits_per_weight <= 29.0
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    parts = config["quantization_config"]["parts"]
    chosen = [s for s, c in Plan.read(result.plan_path).choices.items() if c.key]
    assert sorted(parts) == sorted(chosen) != []
    loaded = load(result.out)
    batch = tiny_tokenizer()(["a text", "another, longer text"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = loaded.generate(**batch, **options)
    assert torch.equal(cached, loaded.generate(**batch, **options, use_cache=False))
    loaded.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")(**batch).logits, loaded(**batch).logits)


def test_all_linears_of_the_heads_are_smaller_and_units_are_pairs(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run = opened(with_tokenizer(model_folder("llama"), tmp_path), tmp_path)
    built = build_library(run)
    part = parts_to_narrow(run)[0]
    assert part.heads is not None
    assert (part.heads.query.rpartition(".")[2], part.heads.size) == ("q_proj", 16)
    assert part.heads.value.endswith("v_proj")
    assert part.heads.units == tuple((dim, dim + 8) for dim in range(8))
    record = built.records[part.site.id, HALF]
    weights = sum(site.weights for site in part.members)
    assert record.stored_bytes == 4 * weights // 2
    option = next(o for o in pose_problem(run, built).problem.options if o.candidate == HALF)
    assert option.resident_bytes == record.stored_bytes
    assert option.loss > 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt_neox", "queries, keys and values are not matrices of their own"),
        ("phi3", "heads were not told apart"),
        ("qwen3", "normalised"),
        ("bert", "its values have a bias"),
        ("mixtral", ""),
    ],
)
def test_what_has_no_such_heads_is_refused_by_name(
    kind: str, reason: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    run = opened(with_tokenizer(model_folder(kind), tmp_path), tmp_path)
    unavailable = build_library(run).unavailable
    attentions = [p.site.id for p in parts_of(run) if p.role is PartRole.ATTENTION]
    assert [f"{site} {HALF}" for site in attentions if reason] == list(unavailable)
    assert all(reason in why for why in unavailable.values())


def test_the_smaller_matrices_take_a_format(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    both = (f"{HALF}+int4-g32:modegpt>gptq", "int8:rtn")
    asked = request(model, tmp_path, candidates=both, budget=Budget(bits=7.5), preset=Preset.FAST)
    result = pipeline.fit(asked)
    choices = Plan.read(result.plan_path).choices
    assert any(choice.candidate == both[0] for choice in choices.values())
    loaded = load(result.out)
    loaded.save_pretrained(tmp_path / "saved")
    tokens = torch.tensor([[9, 40, 41, 42]])
    assert torch.equal(load(tmp_path / "saved")(tokens).logits, loaded(tokens).logits)
