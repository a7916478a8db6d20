"""Fused blocks: built, measured beside the drop of their neighbour, planned, assembled, loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright import pipeline
from blockwright.pipeline.building import build_library
from blockwright.pipeline.fused import fusings
from blockwright.pipeline.measuring import plan_stream
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Choice, FitRequest, Option, Plan, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, tiny_tokenizer, with_tokenizer
from tests.pipeline.test_fit import load

FUSE, NEXT = "fuse:fusegpt@rank=4,steps=8", "fuse-next:fusegpt@rank=4,steps=8"
PACKED = "fuse+int4-g32:fusegpt>rtn@rank=4,steps=8"


def opened(model: Path, work: Path, **changes: Any) -> Run:
    options = {"candidates": (FUSE, "int8:rtn"), "preset": Preset.FAST, **changes}
    return open_run(request(model, work, **options), SilentProgress())


def edited(first: FitRequest, out: Path, block: int, candidate: str) -> FitRequest:
    """The plan of a fit with a block fused and its neighbour dropped by hand."""
    plan = json.loads((first.out / "blockwright-plan.json").read_text(encoding="utf-8"))
    lost = block + (1 if candidate.startswith("fuse-next") else -1)
    path = next(site for site in plan["choices"] if ".layers.0." in site or ".h.0." in site)
    path = path.partition(".0.")[0]
    gone = tuple(f"{path}.{index}" for index in (block, lost))
    kept = {
        s: c for s, c in plan["choices"].items() if not s.startswith(tuple(f"{g}." for g in gone))
    }
    empty = {"stored_bytes": 0, "loss": 0.0, "key": ""}
    kept[gone[0]] = {"candidate": candidate, **empty}
    kept[gone[1]] = {"candidate": "drop", **empty}
    file = out.with_suffix(".json")
    file.write_text(json.dumps({**plan, "choices": kept, "limits": {}}), encoding="utf-8")
    return replace(first, out=out, plan=file, budget=None)


@pytest.mark.parametrize(
    "kind",
    ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "opt", "phi3"))],
)
def test_a_fused_block_loads_generates_and_is_one_block_less(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """``fit`` ends with a reload that compares it with what was measured."""
    model = with_tokenizer(model_folder(kind), tmp_path)
    first = request(
        model, tmp_path, candidates=("int8:rtn",), budget=Budget(bits=9.0), preset=Preset.FAST
    )
    pipeline.fit(first)
    for candidate in (FUSE, NEXT, PACKED):
        out = tmp_path / candidate.partition(":")[0]
        result = pipeline.fit(edited(first, out, 1, candidate))
        loaded = load(result.out)
        assert len(loaded.get_submodule(_block_list(loaded))) == 2
        batch = tiny_tokenizer()(["a text", "another, longer"], return_tensors="pt", padding=True)
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        cached = loaded.generate(**batch, **options)
        assert torch.equal(cached, loaded.generate(**batch, **options, use_cache=False))
    plain = json.loads((tmp_path / "fuse" / "config.json").read_text(encoding="utf-8"))
    packed = json.loads((tmp_path / "fuse+int4-g32" / "config.json").read_text(encoding="utf-8"))
    formats = [spec["format"] for spec in packed["quantization_config"]["sites"].values()]
    assert len(formats) > len(plain["quantization_config"]["sites"])


def _block_list(model: Any) -> str:
    return str(next(n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)))


def losses(options: tuple[Option, ...], candidate: str) -> dict[str, float]:
    return {o.site: o.loss for o in options if o.candidate == candidate}


def test_a_pair_is_what_both_cost_and_bytes_are_those_of_one_block(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    run = opened(with_tokenizer(model_folder("llama"), tmp_path), tmp_path)
    problem = pose_problem(run, build_library(run)).problem
    fused, drops = losses(problem.options, FUSE), losses(problem.options, "drop")
    assert list(fused) == ["model.layers.1", "model.layers.2"]
    assert len(drops) == 3
    pairs = {pair.sites: pair for pair in problem.pairs if FUSE in pair.candidates}
    assert pairs.keys() == {(f"model.layers.{b - 1}", f"model.layers.{b}") for b in (1, 2)}
    pair = pairs["model.layers.0", "model.layers.1"]
    together = drops["model.layers.0"] + fused["model.layers.1"] + pair.loss
    assert 0 < together < drops["model.layers.0"]
    option = next(o for o in problem.options if o.candidate == FUSE)
    linears = [s for s in run.skeleton.block_sites(1) if s.parameter]
    assert option.stored_bytes == sum(map(run.skeleton.dense_bytes, linears))
    assert set(option.contains) == {site.id for site in linears}
    assert option.weights == sum(site.weights for site in linears)


def test_the_plan_fuses_where_that_is_better_than_dropping(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    """At two thirds of the blocks; and a plan file of it is built to the same bytes."""
    model = with_tokenizer(model_folder("llama"), tmp_path)
    first = request(
        model, tmp_path, candidates=(FUSE, NEXT), budget=Budget(bits=22.0), preset=Preset.FAST
    )
    result = pipeline.fit(first)
    chosen = [c.candidate for c in Plan.read(result.plan_path).choices.values()]
    assert chosen.count("drop") == 1
    assert len([c for c in chosen if c.startswith("fuse")]) == 1
    page = (result.out / "blockwright-report.html").read_text(encoding="utf-8")
    assert "Dropped: block " in page
    assert "fuse" in page
    pipeline.fit(replace(first, out=tmp_path / "again", plan=result.plan_path, budget=None))
    before, after = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "again")
    assert before["model.safetensors"] == after["model.safetensors"]


def test_measured_is_the_fused_block(model_folder: ModelFolder, tmp_path: Path) -> None:
    run = opened(with_tokenizer(model_folder("gpt2"), tmp_path), tmp_path)
    record = build_library(run).records["transformer.h.1", FUSE]
    choice = Choice(candidate=FUSE, stored_bytes=0, loss=0.0, key=record.key)
    drop = Choice(candidate="drop", stored_bytes=0, loss=0.0)
    plan = solve(pose_problem(run, build_library(run)).problem, Budget(bits=9.0))
    plan = replace(plan, choices={"transformer.h.0": drop, "transformer.h.1": choice})
    stream = plan_stream(run, plan)
    assert stream.blocks == (1, 2)
    (fusing,) = fusings(run, plan)
    block = stream.block(1)
    for name in ("mlp.c_fc.weight", "attn.c_attn.bias", "ln_1.weight"):
        stored = fusing.parameter(f"transformer.h.1.{name}")
        assert stored is not None
        assert torch.equal(block.get_parameter(name), stored.float())
        original = run.stream().block(1).get_parameter(name)
        assert not torch.equal(block.get_parameter(name), original)


def test_blocks_with_experts_are_not_fused(model_folder: ModelFolder, tmp_path: Path) -> None:
    run = opened(with_tokenizer(model_folder("mixtral"), tmp_path), tmp_path)
    reasons = build_library(run).unavailable
    fused = {name: why for name, why in reasons.items() if name.endswith(FUSE)}
    assert len(fused) == 2
    assert all("experts" in why for why in fused.values())
