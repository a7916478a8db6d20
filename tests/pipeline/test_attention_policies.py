"""A plan gives blocks attention policies where the limit is on the speed of reading."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import blockwright
from blockwright import pipeline
from blockwright.anatomy import build_skeleton
from blockwright.attention.huggingface import POLICIES, attends_by_policy, use_attention
from blockwright.errors import AttentionError, BudgetError, FormatError, PlanError
from blockwright.evaluate import Loading, TimedFolder, run_to_file
from blockwright.machine import measure_profile
from blockwright.pipeline import timing
from blockwright.pipeline.attending import unavailable_policies
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.proving import open_fitted
from blockwright.pipeline.weighing import packed_formats
from blockwright.progress import SilentProgress
from blockwright.stream import Inputs
from blockwright.types import (
    Budget,
    Candidate,
    Choice,
    FitRequest,
    Phase,
    Plan,
    Preset,
    Workload,
    policy_work,
)
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer
from tests.machine.test_profile import FakeClock

NARROW = "window@window=8,sink=2,query_block=8,key_block=8"
WIDE = "window@window=24,sink=2,query_block=8,key_block=8"
BUDGET = Budget(speedup=1.25, phase=Phase.PREFILL, context=64)
SITES = [f"model.layers.{index}.attention_policy" for index in range(3)]


class Heard(SilentProgress):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_profile(model: Path, path: Path) -> None:
    """A profile of this machine with made-up times: policies save a part of a block's 10000 ns."""
    measured = measure_profile(
        build_skeleton(model),
        packed_formats([Candidate.parse("int8:rtn")]),
        Workload(phase=Phase.PREFILL, context=64),
        model="tiny",
        progress=SilentProgress(),
        clock=FakeClock(10),
        rounds=1,
        policies=[NARROW, WIDE],
    )
    works = dict.fromkeys(measured.work_ns, 100)
    for block in measured.blocks_ns:
        assert policy_work(NARROW, block) in works
        works |= {policy_work(NARROW, block): -6000, policy_work(WIDE, block): -4000}
    blocks = dict.fromkeys(measured.blocks_ns, 10_000)
    replace(measured, work_ns=works, blocks_ns=blocks, outside_ns=0).write(path)


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FitRequest:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    write_profile(model, tmp_path / "profile.json")

    def in_turn(first: Loading, second: Loading, workload: Workload) -> tuple[TimedFolder, ...]:
        held = {"library_bytes": 0, "loaded_bytes": 0, "resident_bytes": 0}
        return TimedFolder(least_ns=1600, **held), TimedFolder(least_ns=1000, **held)

    monkeypatch.setattr(timing, "time_in_turn", in_turn)
    options: dict[str, Any] = {
        "preset": Preset.FAST,
        "candidates": ("int8:rtn",),
        "budget": BUDGET,
        "attention": (NARROW, WIDE),
        "profile": tmp_path / "profile.json",
    }
    return request(model, tmp_path, **options)


def policies_of(folder: Path) -> dict[str, str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config", {}).get("attention", {})
    return {layer: spec["policy"] for layer, spec in found.items()}


def test_policies_are_chosen_where_reading_must_be_faster(
    asked: FitRequest, tmp_path: Path
) -> None:
    result = pipeline.fit(asked)
    plan = Plan.read(result.plan_path)
    chosen = {site: plan.choices[site].candidate for site in SITES}
    assert set(chosen.values()) & {NARROW, WIDE}
    assert plan.speedup is not None
    assert plan.speedup >= 1.25
    taken = {site.split(".")[2]: name for site, name in chosen.items() if name != "keep"}
    assert policies_of(asked.out) == taken
    assert all(plan.choices[site].loss > 0 for site in SITES if chosen[site] != "keep")
    assert any(note.startswith("attention: window@") for note in result.notes)

    shutil.copytree(asked.out, tmp_path / "first")
    shutil.rmtree(asked.out)
    pipeline.fit(asked)
    assert folder_bytes(asked.out) == folder_bytes(tmp_path / "first")
    check_loading(asked.out, taken)
    check_edited(replace(asked, out=tmp_path / "edited"), plan, tmp_path)


def check_loading(folder: Path, taken: dict[str, str]) -> None:
    """Loaded, streamed and generating: by the policies; saved again with them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert attends_by_policy(model)
    assert vars(model.config)[POLICIES] == taken
    ids = torch.randint(5, 100, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_policy = model(ids).logits
    inputs = Inputs.of_tokens(ids)
    for attention, same in ((None, True), ("keep", False)):
        stream = open_fitted(folder, attention=attention)
        hidden = run_to_file(stream, inputs, folder.with_name(f"{attention}.bin"))
        streamed = torch.cat(list(hidden.outputs())).view_as(by_policy)
        assert torch.allclose(streamed, by_policy, atol=1e-4) is same
    use_attention(model, "keep")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, streamed, atol=1e-4, rtol=1e-4)
    heard = Heard()
    assert blockwright.generate_text(str(folder), "words " * 8, max_new_tokens=3, progress=heard)
    assert any(note.startswith("attention visited ") for note in heard.notes)
    model.save_pretrained(folder.with_name("saved"))
    assert policies_of(folder.with_name("saved")) == taken


def check_edited(asked: FitRequest, plan: Plan, tmp_path: Path) -> None:
    """A plan file may name other policies; KV caches beside them are refused."""
    moba = Choice(candidate="moba@block=16,keep=2", stored_bytes=0, loss=0.0)
    edited = replace(plan, choices={**plan.choices, SITES[0]: moba}, limits={})
    edited.write(tmp_path / "edited.json")
    asked = replace(asked, budget=None, attention=(), profile=None, plan=tmp_path / "edited.json")
    pipeline.fit(asked)
    assert policies_of(asked.out)["0"] == "moba@block=16,keep=2"
    cache = Choice(candidate="int4@page=8,window=8", stored_bytes=0, loss=0.0)
    both = {**edited.choices, "model.layers.1.kv_cache": cache}
    replace(edited, choices=both).write(tmp_path / "edited.json")
    with pytest.raises(PlanError, match="keep one kind"):
        pipeline.fit(replace(asked, out=tmp_path / "never"))


def test_policies_that_cannot_be_are_refused_or_unavailable(asked: FitRequest) -> None:
    with pytest.raises(AttentionError, match="did you mean 'xattention'"):
        pipeline.fit(replace(asked, attention=("xattentoin",)))
    with pytest.raises(AttentionError, match="pisa is not for causal"):
        pipeline.fit(replace(asked, attention=("pisa",)))
    with pytest.raises(BudgetError, match="give --speedup with --phase prefill"):
        pipeline.fit(replace(asked, budget=Budget(bits=8)))
    longer = replace(asked, budget=replace(BUDGET, context=80))
    found = unavailable_policies(open_run(longer, SilentProgress()))
    assert "shorter than the context of 80" in found[f"attention {NARROW}"]


def test_folders_of_a_later_version_are_refused(asked: FitRequest, tmp_path: Path) -> None:
    edited = json.loads((Path(asked.model) / "config.json").read_text(encoding="utf-8"))
    spec = {"policy": "moba", "version": 9}
    edited["quantization_config"] = {
        "quant_method": "blockwright",
        "version": 3,
        "sites": {},
        "attention": {"0": spec},
    }
    folder = tmp_path / "later"
    shutil.copytree(asked.model, folder)
    (folder / "config.json").write_text(json.dumps(edited), encoding="utf-8")
    with pytest.raises(FormatError, match="version 9, this Blockwright reads up to 1"):
        AutoModelForCausalLM.from_pretrained(folder)
