"""``fit --lossless``: no bit changes, fewer bytes, one clear line where that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from blockwright import pipeline
from blockwright.errors import BudgetError, ModelError, RecipeError, UserError
from blockwright.numerics import dfloat11
from blockwright.pipeline import lossless
from blockwright.pipeline.opening import Opened
from blockwright.types import Budget, FitRequest, Recipe
from tests.models import tiny_model

KINDS = ("llama", "gpt2", "qwen3_moe", "bert", "gemma3")


def tiny(kind: str, work: Path) -> Path:
    """A model in bfloat16."""
    return tiny_model(kind, work / "model", dtype=torch.bfloat16)


def broad(work: Path) -> Path:
    """One large enough for names and code tables not to count."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 1024}
    return tiny_model("llama", work / "model", dtype=torch.bfloat16, **sizes)  # type: ignore[arg-type]


def asked(model: Path, work: Path, **changes: Any) -> FitRequest:
    """A lossless fit without any text or tokenizer."""
    request = FitRequest(
        model=str(model),
        out=work / "out",
        budget=None,
        lossless=True,
        library=work / "library",
        threads=1,
        speed=False,
    )
    return replace(request, **changes)


def change_tensors(model: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def outputs(folder: Path, kind: str) -> Tensor:
    """In bfloat16.  Packed experts are multiplied one by one, so the original's are, too."""
    builder = AutoModel if kind == "bert" else AutoModelForCausalLM
    options = {"experts_implementation": "eager"} if "moe" in kind else {}
    model = builder.from_pretrained(folder, dtype="auto", **options).eval()
    ids = torch.arange(3, 35).view(2, 16)
    with torch.inference_mode():
        found = model(input_ids=ids)
    result: Tensor = found.last_hidden_state if kind == "bert" else found.logits
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_it_gives_the_originals_outputs_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, tmp_path)
    result = pipeline.fit(asked(model, tmp_path))
    assert result.size_bytes < result.original_size_bytes
    before, after = outputs(model, kind), outputs(result.out, kind)
    if kind == "gpt2":  # its product stands the other way round, which adds up in another order
        torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(before.view(torch.int16), after.view(torch.int16))


def test_outputs_that_overflow_are_said_to_and_not_called_a_difference(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    change_tensors(model, lambda tensors: tensors["lm_head.weight"].fill_(3e38))
    with pytest.raises(ModelError, match="its outputs are not finite before it is reloaded"):
        pipeline.fit(asked(model, tmp_path))
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_the_files_and_at_most_072(tmp_path: Path) -> None:
    model = broad(tmp_path)
    result = pipeline.fit(asked(model, tmp_path))
    size = sum(path.stat().st_size for path in result.out.glob("*.safetensors"))
    original = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert (result.size_bytes, result.original_size_bytes) == (size, original)
    assert size <= 0.72 * original
    names = load_file(model / "model.safetensors")
    assert result.verified_tensors == len(names)
    shown = result.to_json()
    assert shown["verified_tensors"] == len(names)
    assert shown["kl_divergence"] is None
    assert 10 < shown["bits_per_weight"] < 11


def test_tables_and_head_are_coded_too(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "model", dtype=torch.bfloat16, sharded=True)
    result = pipeline.fit(asked(model, tmp_path))
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    sites = config["quantization_config"]["sites"]
    assert {"model.embed_tokens", "lm_head"} <= set(sites)
    assert {spec["format"] for spec in sites.values()} == {"df"}
    plan = json.loads(result.plan_path.read_text(encoding="utf-8"))
    assert {choice["candidate"] for choice in plan["choices"].values()} == {"df11"}
    assert result.size_bytes <= plan["size_bytes"]


def test_a_second_run_codes_nothing_and_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    first = pipeline.fit(asked(model, tmp_path))
    second = pipeline.fit(asked(model, tmp_path, out=tmp_path / "again"))
    assert (first.library_hits, second.library_misses) == (0, 0)
    assert second.library_hits == first.library_misses > 0
    for name in ("model.safetensors", "config.json", "blockwright-plan.json", "blockwright.toml"):
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()


def test_killed_while_coding_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", tmp_path)
    coded, calls = lossless._code, list[str]()

    def stop_at_the_fourth(opened: Opened, parameter: str, wanted: Any) -> None:
        calls.append(parameter)
        if len(calls) == 4:
            raise KeyboardInterrupt
        coded(opened, parameter, wanted)

    monkeypatch.setattr(lossless, "_code", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fit(asked(model, tmp_path))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(lossless, "_code", coded)
    result = pipeline.fit(asked(model, tmp_path))
    assert result.library_hits == 3


def test_weights_that_no_code_shrinks_are_kept(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    kept = "model.layers.1.mlp.up_proj.weight"

    def make_noise(tensors: dict[str, Tensor]) -> None:
        exponents = torch.randint(1, 250, tensors[kept].shape, dtype=torch.int16)
        tensors[kept] = (exponents << 7).view(torch.bfloat16)

    change_tensors(model, make_noise)
    result = pipeline.fit(asked(model, tmp_path))
    tensors = load_file(result.out / "model.safetensors")
    assert torch.equal(tensors[kept], load_file(model / "model.safetensors")[kept])
    plan = json.loads(result.plan_path.read_text(encoding="utf-8"))
    assert plan["choices"][kept.removesuffix(".weight")]["candidate"] == "keep"


def test_a_model_that_shrinks_little_says_where_its_bytes_are(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)

    def make_some_noise(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "mlp" in name]:
            exponents = torch.randint(1, 120, tensors[name].shape, dtype=torch.int16)
            tensors[name] = (exponents << 7).view(torch.bfloat16)

    change_tensors(model, make_some_noise)
    (note,) = pipeline.fit(asked(model, tmp_path)).notes
    norms = 2 * 7 * 64
    assert "of the original's size, where at most 0.72 is usual" in note
    assert f"bytes {norms} are tensors kept as they are" in note


def test_one_wrong_bit_is_found_before_success_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", tmp_path)
    right = dfloat11.to_bytes

    def flip_a_bit(values: Tensor) -> Tensor:
        stored = right(values)
        if values.shape == (96, 64):
            stored[-1] ^= 1
        return stored

    monkeypatch.setattr("blockwright.formats.df.to_bytes", flip_a_bit)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate_proj\.weight is not bit for bit"):
        pipeline.fit(asked(model, tmp_path))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def refusal(request: FitRequest) -> str:
    with pytest.raises(UserError) as caught:
        pipeline.fit(request)
    assert not request.out.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "model", dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    message = refusal(asked(model, tmp_path))
    assert f"model.embed_tokens.weight is {name}; give a budget instead" in message


def test_weights_that_config_would_cast_are_refused(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(model, lambda tensors: tensors.update({name: tensors[name].float()}))
    message = refusal(asked(model, tmp_path))
    assert f"{name} is stored as float32 and config.json loads it as bfloat16" in message


def test_models_that_would_not_shrink_are_refused(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)

    def make_noise(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            exponents = torch.randint(1, 250, tensor.shape, dtype=torch.int16)
            tensors[name] = (exponents << 7).view(torch.bfloat16)

    change_tensors(model, make_noise)
    assert "would not shrink without loss" in refusal(asked(model, tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", Budget(bits=3)),
        ("plan", Path("plan.json")),
        ("candidates", ("int8",)),
        ("calibration", Path("text")),
        ("eval_tokens", 512),
    ],
)
def test_what_has_no_use_beside_it_is_refused(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=f"nothing is chosen, so {field.replace('_', ' ')} "):
        asked(tmp_path, tmp_path, **{field: value})


def test_its_recipe_repeats_it_and_knows_its_model(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    first = pipeline.fit(asked(model, tmp_path))
    path = first.out / "blockwright.toml"
    again = Recipe.read(path).request(
        out=tmp_path / "again", library=tmp_path / "library", recipe=path
    )
    assert again.lossless
    second = pipeline.fit(again)
    names = ("model.safetensors", "config.json", "blockwright.toml")
    assert all((first.out / n).read_bytes() == (second.out / n).read_bytes() for n in names)
    change_tensors(model, lambda tensors: tensors["model.norm.weight"].mul_(2))
    with pytest.raises(RecipeError, match="the model is not the one it was made with"):
        pipeline.fit(replace(again, out=tmp_path / "third"))


def test_card_and_report_say_that_nothing_is_lost(tmp_path: Path) -> None:
    model = broad(tmp_path)
    result = pipeline.fit(asked(model, tmp_path))
    card = (result.out / "README.md").read_text(encoding="utf-8")
    assert "without loss at 6" in card
    assert "tensors hashed: each is bit for bit the original's" in card
    page = result.report_path.read_text(encoding="utf-8")
    for text in ("every bit", "tensors hashed", "No plan was measured: nothing is lost"):
        assert text in page
    assert "perplexity" not in page


def test_the_price_is_known_before(tmp_path: Path) -> None:
    model = broad(tmp_path)
    price = pipeline.price(asked(model, tmp_path))
    result = pipeline.fit(asked(model, tmp_path))
    assert price.disk_bytes > 1.9 * result.size_bytes
    assert price.memory_bytes > 0
    assert set(price.parts) == {"read, write and hash", "code", "decode", "reload"}
