"""Attention with fewer heads: found by probing, planned, assembled as smaller matrices, loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockwright import pipeline
from blockwright.pipeline.building import build_library
from blockwright.pipeline.measuring import plan_stream
from blockwright.pipeline.narrowing import parts_to_narrow
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.types import Budget, PartRole, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import request, tiny_tokenizer, with_tokenizer
from tests.pipeline.test_fit import load

CANDIDATES = ("heads-p50", "int8:rtn")
SEPARATE = ("qwen3", "mistral", "gemma3", "gpt_neox")
"""Beside Llama: queries, keys and values by head, in matrices of their own or one head behind the
other.
"""


def opened(model: Path, work: Path, *candidates: str) -> Run:
    asked = request(model, work, candidates=candidates or CANDIDATES, preset=Preset.FAST)
    return open_run(asked, SilentProgress())


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SEPARATE)]
)
def test_a_plan_with_fewer_heads_loads_generates_and_saves_again(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares the smaller matrices with zeros in whole ones."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    asked = request(
        model, tmp_path, candidates=("heads-p50",), budget=Budget(bits=29.0), preset=Preset.FAST
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


def test_a_key_value_head_goes_with_its_query_heads(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run = opened(with_tokenizer(model_folder("llama"), tmp_path), tmp_path, "heads-p50")
    plan = solve(pose_problem(run, build_library(run)).problem, Budget(bits=29.0))
    chosen = {site for site, choice in plan.choices.items() if choice.key}
    part = next(part for part in parts_to_narrow(run) if part.site.id in chosen)
    assert part.channels is not None
    assert (part.channels.width, part.channels.columns) == (2, 32)
    assert sorted(rows for rows, _ in part.channels.readers.values()) == [16, 16, 32]
    block = plan_stream(run, plan).block(part.site.block or 0)
    weights = [block.get_parameter(f"self_attn.{n}_proj.weight") for n in "qkvo"]
    rows = [weight.count_nonzero(1 - place // 3) for place, weight in enumerate(weights)]
    assert [int((count > 0).sum()) for count in rows] == [32, 16, 16, 32]


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "opt"])
def test_what_cannot_be_sliced_is_refused_by_name(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """One matrix of all queries, then all keys, then all values; a forward that counts heads."""
    run = opened(with_tokenizer(model_folder(kind), tmp_path), tmp_path)
    unavailable = build_library(run).unavailable
    attentions = [p.site.id for p in parts_of(run) if p.role is PartRole.ATTENTION]
    assert [f"{site} heads-p50" for site in attentions] == list(unavailable)
    for site, why in zip(attentions, unavailable.values(), strict=True):
        assert why.startswith(f"{site}: ")
        assert "heads" in why


def test_the_smaller_matrices_take_a_format(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    both = ("heads-p50+int4-g32:modegpt>gptq", "int8:rtn")
    asked = request(model, tmp_path, candidates=both, budget=Budget(bits=7.5))
    result = pipeline.fit(asked)
    choices = Plan.read(result.plan_path).choices
    assert any(choice.candidate == both[0] for choice in choices.values())
    loaded = load(result.out)
    loaded.save_pretrained(tmp_path / "saved")
    tokens = torch.tensor([[9, 40, 41, 42]])
    assert torch.equal(load(tmp_path / "saved")(tokens).logits, loaded(tokens).logits)
