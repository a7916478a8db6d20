"""Parameters come out of checkpoints as ``from_pretrained`` loads them, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.errors import CheckpointError
from tests.conftest import ModelFolder
from tests.models import KINDS, random_model


def opened(folder: Path) -> tuple[Skeleton, ParameterSource]:
    skeleton = build_skeleton(folder)
    return skeleton, ParameterSource(skeleton.model, Checkpoint.open(folder))


def reference(skeleton: Skeleton, folder: Path) -> dict[str, Tensor]:
    auto = (
        transformers.AutoModelForCausalLM
        if skeleton.task == "causal-lm"
        else transformers.AutoModel
    )
    model = auto.from_pretrained(folder)
    return dict(model.state_dict())


def assert_loads_like_transformers(folder: Path) -> ParameterSource:
    skeleton, source = opened(folder)
    source.check_shapes()
    expected = reference(skeleton, folder)
    loaded = source.load(expected)
    assert loaded.keys() == expected.keys() == skeleton.parameters.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name
    assert source.missing == ()
    return source


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(kind: str, sharded: bool, model_folder: ModelFolder) -> None:
    source = assert_loads_like_transformers(model_folder(kind, sharded=sharded))
    assert source.unused == ()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied(kind: str, tied: bool, model_folder: ModelFolder) -> None:
    folder = model_folder(kind, tie_word_embeddings=tied)
    source = assert_loads_like_transformers(folder)
    skeleton, _ = opened(folder)
    ties = skeleton.model.all_tied_weights_keys
    assert len(ties) == int(tied)
    for target, origin in ties.items():
        assert source.sources(target) == source.sources(origin)
        loaded = source.load([target, origin])
        assert loaded[target] is loaded[origin]


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_dtype_is_the_configs(kind: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder(kind), tmp_path, dtype="bfloat16")
    _, source = opened(folder)
    name = next(iter(source.load(["lm_head.weight"]).values()))
    assert name.dtype == torch.bfloat16
    assert_loads_like_transformers(folder)


def test_dtype_is_the_checkpoints_where_the_config_has_none(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = copied(model_folder("llama", dtype=torch.float16), tmp_path, dtype=None)
    _, source = opened(folder)
    assert source.load(["model.norm.weight"])["model.norm.weight"].dtype == torch.float16
    assert_loads_like_transformers(folder)


def copied(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model folder with other entries in its config; None removes one."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    path = target / "config.json"
    config = json.loads(path.read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))
    return target


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return tensors


def restored(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_tied_tensor_stored_under_the_heads_name(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("llama", tie_word_embeddings=True), tmp_path)
    tensors = stored(folder)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    source = assert_loads_like_transformers(restored(folder, tensors))
    assert source.sources("model.embed_tokens.weight") == ("lm_head.weight",)


def test_tied_tensor_stored_twice(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("llama", tie_word_embeddings=True), tmp_path)
    tensors = stored(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    assert assert_loads_like_transformers(restored(folder, tensors)).unused == ()
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(CheckpointError, match=r"config.json ties .* two different tensors"):
        opened(restored(folder, tensors))


def test_base_model_checkpoint_fills_a_model_with_a_head(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = copied(model_folder("gpt2"), tmp_path)
    tensors = {name.removeprefix("transformer."): t for name, t in stored(folder).items()}
    assert "wte.weight" in tensors
    source = assert_loads_like_transformers(restored(folder, tensors))
    assert source.sources("lm_head.weight") == ("wte.weight",)


def test_checkpoint_with_a_head_fills_a_base_model_without_pooler(tmp_path: Path) -> None:
    config = random_model("bert").config
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    skeleton, source = opened(tmp_path)
    assert not any("pooler" in name for name in skeleton.parameters)
    assert skeleton.config is skeleton.model.config
    assert source.missing == ()
    assert all(name.startswith("cls.") for name in source.unused)
    expected = transformers.BertForMaskedLM.from_pretrained(tmp_path).bert.state_dict()
    loaded = source.load(skeleton.parameters)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_only_what_is_asked_for_is_read(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton, source = opened(model_folder("mixtral"))
    asked = skeleton.parameters_of_block(1)
    read: list[str] = []
    original = Checkpoint.read

    def spy(self: Checkpoint, name: str) -> Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "read", spy)
    source.load(asked)
    assert sorted(read) == sorted(name for p in asked for name in source.sources(p))
    assert all(name.startswith("model.layers.1.") for name in read)
    assert len([name for name in read if ".experts." in name]) == 3 * 4


def test_experts_are_stored_one_by_one_and_read_as_one_parameter(
    model_folder: ModelFolder,
) -> None:
    folder = model_folder("mixtral")
    _, source = opened(folder)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = stored(folder)
    prefix = "model.layers.0.block_sparse_moe.experts"
    expected = [
        torch.cat([tensors[f"{prefix}.{e}.w1.weight"], tensors[f"{prefix}.{e}.w3.weight"]])
        for e in range(4)
    ]
    assert torch.equal(source.load([name])[name], torch.stack(expected))


def test_unused_tensors_are_named(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("llama"), tmp_path)
    restored(folder, stored(folder) | {"extra.weight": torch.ones(2)})
    assert opened(folder)[1].unused == ("extra.weight",)


def test_missing_tensor_is_one_line(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("llama"), tmp_path)
    tensors, name = stored(folder), "model.layers.1.mlp.up_proj.weight"
    del tensors[name]
    _, source = opened(restored(folder, tensors))
    assert source.missing == (name,)
    for action in (lambda: source.load([name]), source.check_shapes):
        with pytest.raises(CheckpointError, match=name) as caught:
            action()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "parameter"),
    [
        ("llama", "model.norm.weight", "model.norm.weight"),
        (
            "mixtral",
            "model.layers.2.block_sparse_moe.experts.3.w2.weight",
            "model.layers.2.mlp.experts.down_proj",
        ),
    ],
)
def test_other_shape_is_one_line(
    kind: str, name: str, parameter: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = copied(model_folder(kind), tmp_path)
    tensors = stored(folder)
    tensors[name] = tensors[name][..., :-1].clone()
    _, source = opened(restored(folder, tensors))
    for action in (lambda: source.load([parameter]), source.check_shapes):
        with pytest.raises(CheckpointError, match=parameter) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_shape_error_says_expected_and_got(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("llama"), tmp_path, intermediate_size=80)
    _, source = opened(folder)
    with pytest.raises(CheckpointError, match=r"up_proj.* \[96, 64\].* \[80, 64\]"):
        source.load(["model.layers.0.mlp.up_proj.weight"])


def test_missing_expert_is_one_line(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copied(model_folder("mixtral"), tmp_path)
    tensors = stored(folder)
    del tensors["model.layers.0.block_sparse_moe.experts.2.w2.weight"]
    _, source = opened(restored(folder, tensors))
    with pytest.raises(CheckpointError, match=r"down_proj.*\[3, 64, 96\].*\[4, 64, 96\]"):
        source.check_shapes()
