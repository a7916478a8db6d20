"""``fit`` end to end on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from blockwright import pipeline
from blockwright.types import Budget, FitResult, Preset
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer

KINDS = {
    "llama": {"intermediate_size": 128},
    "gemma3": {"intermediate_size": 128},
    "gpt2": {"n_inner": 128},
    "phi3": {"intermediate_size": 128},
    "qwen3_moe": {"moe_intermediate_size": 64},
    "bert": {"intermediate_size": 128},
}


def load(folder: Path, task: str = "causal-lm", **options: Any) -> Any:
    builder = AutoModelForCausalLM if task == "causal-lm" else AutoModel
    return builder.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize(
    ("kind", "budget", "preset"),
    [
        *((kind, Budget(ratio=0.45), Preset.FAST) for kind in KINDS),
        *((kind, Budget(bits=4.6), Preset.BALANCED) for kind in ("llama", "gpt2", "bert")),
        *(
            pytest.param(kind, Budget(bits=4.6), Preset.BALANCED, marks=pytest.mark.slow)
            for kind in ("gemma3", "phi3", "qwen3_moe")
        ),
    ],
)
def test_fitted_folder_keeps_its_budget_and_loads(
    kind: str, budget: Budget, preset: Preset, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind, **KINDS[kind]), tmp_path)
    result = pipeline.fit(request(model, tmp_path, budget=budget, preset=preset))
    if budget.bits is not None:
        assert result.bits_per_weight <= budget.bits
    else:
        assert result.size_bytes <= 0.45 * result.original_size_bytes
    files = (tmp_path / "out").glob("*.safetensors")
    assert result.size_bytes == sum(path.stat().st_size for path in files)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "blockwright"
    assert_quality(result)


def assert_quality(result: FitResult) -> None:
    quality = result.fitted
    if quality.kl_divergence is not None:
        assert 0 <= quality.kl_divergence < 1
        assert quality.top1_agreement is not None
    else:
        assert quality.relative_error is not None
        assert quality.relative_error < 0.5


def test_plan_is_never_worse_than_uniform_on_selection_text(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    result = pipeline.fit(request(model, tmp_path))
    plan = json.loads(result.plan_path.read_text(encoding="utf-8"))
    assert result.bits_per_weight_uniform is not None
    assert plan["measured"]["selection_loss"] > 0


def test_second_budget_builds_nothing(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    first = request(model, tmp_path)
    assert pipeline.fit(first).library_hits == 0
    second = replace(first, budget=Budget(bits=5.5), out=tmp_path / "second")
    result = pipeline.fit(second)
    assert result.library_misses == 0
    assert result.library_hits > 0


@pytest.mark.slow
@pytest.mark.fresh
def test_rerun_gives_the_same_bytes(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    first = request(model, tmp_path)
    pipeline.fit(first)
    second = replace(first, out=tmp_path / "second", library=tmp_path / "other-library")
    pipeline.fit(second)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "second")


def test_a_folders_own_plan_builds_the_same_folder(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    first = request(model, tmp_path)
    result = pipeline.fit(first)
    again = replace(first, out=tmp_path / "again", plan=result.plan_path, budget=None)
    pipeline.fit(again)
    before, after = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "again")
    assert before["model.safetensors"] == after["model.safetensors"]


def test_an_edited_plan_with_a_dropped_block_generates(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    first = request(model, tmp_path)
    plan = json.loads(pipeline.fit(first).plan_path.read_text(encoding="utf-8"))
    kept = {k: v for k, v in plan["choices"].items() if not k.startswith("model.layers.1.")}
    kept["model.layers.1"] = {"candidate": "drop", "stored_bytes": 0, "loss": 0.0, "key": ""}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({**plan, "choices": kept}), encoding="utf-8")
    result = pipeline.fit(replace(first, out=tmp_path / "dropped", plan=edited, budget=None))
    loaded = load(result.out)
    assert loaded.config.num_hidden_layers == 2
    tokens = loaded.generate(torch.tensor([[1, 9, 8]]), max_new_tokens=5, do_sample=False)
    assert tokens.shape[1] > 3


def test_loading_without_blockwright_raises(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    pipeline.fit(request(model, tmp_path))
    code = (
        "import sys; from transformers import AutoModelForCausalLM;"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "size mismatch" in done.stderr or "mismatched" in done.stderr


def test_a_loaded_folder_is_not_kept_mapped(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", **KINDS["llama"]), tmp_path)
    out = pipeline.fit(request(model, tmp_path)).out
    loaded = load(out)
    assert str(out) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3_moe"])
def test_save_pretrained_round_trip(kind: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder(kind, **KINDS[kind]), tmp_path)
    pipeline.fit(request(model, tmp_path, budget=Budget(ratio=0.6)))
    first = load(tmp_path / "out")
    first.save_pretrained(tmp_path / "saved")
    second = load(tmp_path / "saved")
    ids = torch.tensor([[1, 9, 8, 30, 41]])
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_generation_with_cache_batches_and_padding(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder(kind, **KINDS[kind]), tmp_path)
    pipeline.fit(request(model, tmp_path))
    loaded = load(tmp_path / "out")
    prompts = torch.tensor([[1, 9, 8, 30, 41], [0, 0, 1, 50, 61]])
    mask = (prompts != 0).long()
    both = loaded.generate(
        input_ids=prompts, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    for row, prompt in enumerate(([1, 9, 8, 30, 41], [1, 50, 61])):
        alone = loaded.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            use_cache=False,
        )
        assert both[row, 5:].tolist() == alone[0, len(prompt) :].tolist()
