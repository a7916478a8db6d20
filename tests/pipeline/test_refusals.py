"""Bad input: one clear line, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockwright import pipeline
from blockwright.errors import UserError
from blockwright.pipeline.building import wanted_variants
from blockwright.pipeline.opening import open_run
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer, words


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path) -> FitRequest:
    """A request that would succeed."""
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    return request(model, tmp_path)


def refusal(asked: FitRequest) -> str:
    """The one line that refuses a request; nothing was written to its output."""
    before = {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        pipeline.fit(asked)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    after = {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()}
    assert before == after
    assert not asked.out.with_name(asked.out.name + ".partial").exists()
    return message


def change_tensors(asked: FitRequest, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = Path(asked.model) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(asked: FitRequest, **fields: object) -> None:
    path = Path(asked.model) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")


NORM = "model.layers.1.input_layernorm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def test_missing_model_folder(asked: FitRequest, tmp_path: Path) -> None:
    assert "no such" in refusal(replace(asked, model=str(tmp_path / "absent")))


def test_no_config(asked: FitRequest) -> None:
    (Path(asked.model) / "config.json").unlink()
    assert "config.json" in refusal(asked)


def test_pickle_only_checkpoint(asked: FitRequest) -> None:
    (Path(asked.model) / "model.safetensors").rename(Path(asked.model) / "pytorch_model.bin")
    assert "safetensors" in refusal(asked)


def test_remote_code(asked: FitRequest) -> None:
    change_config(
        asked,
        model_type="foreign",
        auto_map={
            "AutoConfig": "configuration_foreign.ForeignConfig",
            "AutoModelForCausalLM": "modeling_foreign.ForeignModel",
        },
    )
    assert "--trust-remote-code" in refusal(asked)


def test_truncated_safetensors(asked: FitRequest) -> None:
    path = Path(asked.model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in refusal(asked)


def test_missing_tensor(asked: FitRequest) -> None:
    change_tensors(asked, lambda tensors: tensors.pop(DOWN))
    assert DOWN in refusal(asked)


def test_tensor_of_another_shape(asked: FitRequest) -> None:
    change_tensors(asked, lambda tensors: tensors.update({NORM: torch.ones(7)}))
    message = refusal(asked)
    assert NORM in message
    assert "[7]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(asked: FitRequest, value: float) -> None:
    change_tensors(asked, lambda tensors: tensors[DOWN].view(-1)[3:4].fill_(value))
    assert DOWN in refusal(asked)


def test_budget_below_the_smallest_plan_names_it(asked: FitRequest) -> None:
    assert "smallest plan has 3.5938" in refusal(replace(asked, budget=Budget(bits=2.0)))


def test_budget_above_the_original(asked: FitRequest) -> None:
    assert "fits as it is" in refusal(replace(asked, budget=Budget(bits=33.0)))
    assert "fits as it is" in refusal(replace(asked, budget=Budget(size_bytes=10**12)))


@pytest.mark.parametrize(
    ("candidate", "nearest"),
    [("imt4-g64:gptq", "int"), ("int4-g32:gptk", "gptq"), ("int4-g32:gptq@dampling=1", "damping")],
)
def test_unknown_candidate_suggests_the_nearest(
    asked: FitRequest, candidate: str, nearest: str
) -> None:
    assert f"{nearest!r}" in refusal(replace(asked, candidates=(candidate,)))


def test_empty_text(asked: FitRequest, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    assert "empty" in refusal(replace(asked, eval_text=tmp_path / "empty.txt"))


def test_short_text_says_how_many_tokens_are_needed(asked: FitRequest, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(words(5, 3), encoding="utf-8")
    message = refusal(replace(asked, eval_text=tmp_path / "short.txt"))
    assert "tokens" in message
    assert "512" in message


def test_one_text_for_two_splits(asked: FitRequest) -> None:
    assert asked.calibration is not None
    message = refusal(replace(asked, eval_text=asked.calibration))
    assert "calibration" in message
    assert "held-out" in message


def test_output_folder_not_empty(asked: FitRequest) -> None:
    asked.out.mkdir()
    (asked.out / "note.txt").write_text("mine", encoding="utf-8")
    assert "not empty" in refusal(asked)


def test_library_that_is_something_else(asked: FitRequest, tmp_path: Path) -> None:
    assert "library" in refusal(replace(asked, library=tmp_path / "texts"))


def test_a_library_in_use_for_the_same_entry(asked: FitRequest) -> None:
    run = open_run(asked, SilentProgress())
    site = run.skeleton.block_sites(1)[0]
    wanted = wanted_variants(run, site)[0]
    with run.library.building(wanted.key):
        message = refusal(asked)
    assert f"is building the same entry {wanted.key}" in message
    assert "another --library" in message
    pipeline.fit(asked)


@pytest.mark.parametrize(("call", "least"), [("fsync", 0), ("pwrite", 0), ("pwrite", 100)])
def test_disk_full(
    asked: FitRequest, call: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an entry of the library, at its lock, and at the tensors of the folder."""
    write = getattr(os, call)

    def full(*given: Any) -> Any:
        if call == "pwrite" and len(given[1]) < least:
            return write(*given)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        message = refusal(asked)
    assert "no space left" in message.lower()
    assert "free s" in message
    assert "the same command" in message
    pipeline.fit(asked)


def test_format_that_the_shape_cannot_take(asked: FitRequest, tmp_path: Path) -> None:
    result = pipeline.fit(replace(asked, candidates=("int4-g128:rtn", "int3-g32:rtn")))
    assert any("128" in reason for reason in result.unavailable.values())


def test_already_fitted_folder(asked: FitRequest, tmp_path: Path) -> None:
    pipeline.fit(asked)
    again = replace(asked, model=str(asked.out), out=tmp_path / "second")
    assert "original" in refusal(again)


def test_folder_of_a_newer_format_version(asked: FitRequest, tmp_path: Path) -> None:
    from blockwright.pipeline.proving import open_fitted  # noqa: PLC0415

    pipeline.fit(asked)
    newer = tmp_path / "newer"
    shutil.copytree(asked.out, newer)
    path = newer / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for spec in config["quantization_config"]["sites"].values():
        spec["version"] = 999
    path.write_text(json.dumps(config), encoding="utf-8")
    stream = open_fitted(newer)
    with pytest.raises(UserError, match="version 999"):
        stream.block(0)
