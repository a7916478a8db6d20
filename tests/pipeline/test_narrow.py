"""Narrower FFNs: found by probing, planned, assembled as smaller matrices, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blockwright import pipeline
from blockwright.errors import CandidateError
from blockwright.pipeline.building import build_library
from blockwright.pipeline.dropping import narrow_option
from blockwright.pipeline.measuring import plan_stream
from blockwright.pipeline.narrowing import parts_to_narrow
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.weighing import weigh
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.registry import format_named, method_named, resolve, width_named
from blockwright.types import Budget, Candidate, PartRole, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import request, tiny_tokenizer, with_tokenizer
from tests.pipeline.test_fit import load

KINDS = ("llama", "gemma3", "phi3", "gpt2", "opt", "gpt_neox")
CANDIDATES = ("narrow-p50", "narrow-p75", "int8:rtn")


def opened(model: Path, work: Path, **changes: Any) -> Run:
    options = {"candidates": CANDIDATES, "preset": Preset.FAST, **changes}
    return open_run(request(model, work, **options), SilentProgress())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_with_narrower_ffns_loads_generates_and_saves_again(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares the smaller matrices with zeros in whole ones."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    asked = request(
        model, tmp_path, candidates=("narrow-p50",), budget=Budget(bits=28.0), preset=Preset.FAST
    )
    result = pipeline.fit(asked)
    assert result.bits_per_weight <= 28.0
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    parts = config["quantization_config"]["parts"]
    chosen = [s for s, c in Plan.read(result.plan_path).choices.items() if c.key]
    assert sorted(parts) == sorted(chosen) != []
    tensors = load_file(result.out / "model.safetensors")
    for spec in parts.values():
        for site, shape in spec["shapes"].items():
            assert sorted(tensors[f"{site}.weight"].shape) == sorted(shape)
    loaded = load(result.out)
    batch = tiny_tokenizer()(["a text", "another, longer text"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = loaded.generate(**batch, **options)
    assert torch.equal(cached, loaded.generate(**batch, **options, use_cache=False))
    loaded.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")(**batch).logits, loaded(**batch).logits)


def test_bytes_are_those_of_the_smaller_matrices(model_folder: ModelFolder, tmp_path: Path) -> None:
    run = opened(with_tokenizer(model_folder("opt"), tmp_path), tmp_path)
    built = build_library(run)
    (part, *_) = parts_to_narrow(run)
    option = narrow_option(run, part, built.records[part.site.id, "narrow-p50"], ())
    assert option.stored_bytes == 4 * 2 * 48 * 64
    assert option.other_bytes == -4 * 48
    assert option.contains == tuple(site.id for site in part.members)
    assert option.weights == 2 * 96 * 64


@pytest.mark.parametrize("kind", ["phi3", "gpt2"])
def test_measured_is_the_model_without_the_other_channels(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind), tmp_path)
    run = opened(model, tmp_path, candidates=("narrow-p50", "narrow-p75"))
    plan = solve(pose_problem(run, build_library(run)).problem, Budget(bits=27.0))
    narrowed = [s for s, c in plan.choices.items() if c.candidate.startswith("narrow")]
    assert narrowed
    part = next(part for part in parts_of(run) if part.site.id == narrowed[0])
    assert part.channels is not None
    block = plan_stream(run, plan).block(part.site.block or 0)
    prefix = f"{run.skeleton.block_path}.{part.site.block}."
    for site in part.members:
        weight = block.get_parameter(site.parameter.removeprefix(prefix))
        W_OI = weight.T if site.transposed else weight
        axis = 0 if site.id == part.channels.writer else 1
        left = int((W_OI != 0).any(dim=axis).sum()) / W_OI.shape[1 - axis]
        assert left in (0.5, 0.75)


def test_experts_keep_their_width_and_attention_is_not_asked(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run = opened(with_tokenizer(model_folder("mixtral"), tmp_path), tmp_path)
    unavailable = build_library(run).unavailable
    assert set(unavailable.values()) == {
        f"{part.site.id}: experts keep their width"
        for part in parts_of(run)
        if part.role is PartRole.FFN
    }


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {"intermediate_size": 256}),
        ("phi3", {"intermediate_size": 256}),
        ("gpt2", {"n_inner": 256}),
        ("opt", {"ffn_dim": 256}),
    ],
)
def test_the_smaller_matrices_take_a_format(
    kind: str, shape: dict[str, int], model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares packed, smaller matrices with the streamed ones."""
    model = with_tokenizer(model_folder(kind, **shape), tmp_path)
    both = ("narrow-p50+int4-g32:modegpt>gptq", "int8:rtn")
    asked = request(model, tmp_path, candidates=both, budget=Budget(bits=5.5))
    result = pipeline.fit(asked)
    choices = Plan.read(result.plan_path).choices
    narrow = [site for site, choice in choices.items() if choice.candidate == both[0]]
    assert narrow
    assert result.bits_per_weight <= 5.5
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    sites = config["quantization_config"]["sites"]
    for part in narrow:
        for site in config["quantization_config"]["parts"][part]["shapes"]:
            assert sites[site]["format"] == "int"
    loaded = load(result.out)
    loaded.save_pretrained(tmp_path / "saved")
    tokens = torch.tensor([[9, 40, 41, 42]])
    assert torch.equal(load(tmp_path / "saved")(tokens).logits, loaded(tokens).logits)


def test_packed_bytes_are_those_of_the_smaller_shapes(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("opt", ffn_dim=256), tmp_path)
    run = opened(model, tmp_path, candidates=("narrow-p75+int4-g64:modegpt>rtn", "int8:rtn"))
    built = build_library(run)
    (part, *_) = parts_to_narrow(run)
    record = built.records[part.site.id, "narrow-p75+int4-g64:modegpt>rtn"]
    format = format_named("int4-g64")
    assert record.stored_bytes == format.stored_bytes((192, 64)) + format.stored_bytes((64, 192))


def test_a_chain_of_methods_has_to_fit() -> None:
    for wrong in ("narrow-p75:modegpt>gptq", "narrow-p75+rank-p50:modegpt>gptq"):
        with pytest.raises(CandidateError, match="takes a method that narrows"):
            resolve(Candidate.parse(wrong))
    _, (first, second) = resolve(Candidate.parse("narrow-p75+int4-g64:modegpt>gptq@ridge=0.1"))
    assert (first, second) == (width_named("modegpt", (("ridge", "0.1"),)), method_named("gptq"))
    assert len(resolve(Candidate.parse("narrow-p75+int8"))[1]) == 2


def test_smaller_matrices_are_timed_for_a_limit_on_speed(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    """They are offered under one because products of their shapes are measured."""
    model = with_tokenizer(model_folder("llama", intermediate_size=256), tmp_path)
    candidates = ("narrow-p50", "narrow-p50+int4-g32:modegpt>rtn", "int8:rtn")
    budget = Budget(bits=16.0, speedup=1.01, context=16)
    run = opened(model, tmp_path, candidates=candidates, budget=budget)
    problem = weigh(run, pose_problem(run, build_library(run)).problem).problem
    narrow = {o.candidate: o for o in problem.options if o.site == "model.layers.1.mlp"}
    assert narrow["narrow-p50"].work == (
        "linear 128x64 keep",
        "linear 128x64 keep",
        "linear 64x128 keep",
    )
    assert narrow["narrow-p50"].latency_ns
    assert narrow[candidates[1]].work[0] == "linear 128x64 int4-g32"
    assert narrow["narrow-p50"].resident_bytes == 4 * 3 * 128 * 64
