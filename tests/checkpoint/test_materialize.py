"""A materialised module equals ``from_pretrained``'s, computed buffers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.checkpoint import Checkpoint, ParameterSource, materialize
from blockwright.errors import CheckpointError, ModelError
from tests.conftest import ModelFolder
from tests.models import KINDS, VOCAB

SCALED_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
SCALED_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def opened(folder: Path) -> tuple[Skeleton, ParameterSource]:
    skeleton = build_skeleton(folder)
    return skeleton, ParameterSource(skeleton.model, Checkpoint.open(folder))


def peer(skeleton: Skeleton, folder: Path) -> Any:
    auto = (
        transformers.AutoModelForCausalLM
        if skeleton.task == "causal-lm"
        else transformers.AutoModel
    )
    return auto.from_pretrained(folder)


def some_input(skeleton: Skeleton) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if skeleton.task == "vision":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(3, VOCAB, (2, 40), generator=generator)}


def assert_same(real: nn.Module, expected: nn.Module) -> None:
    tensors = dict(expected.named_parameters()) | dict(expected.named_buffers())
    made = dict(real.named_parameters()) | dict(real.named_buffers())
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert made[name].device.type == "cpu"
        assert made[name].dtype == tensor.dtype, name
        assert torch.equal(made[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_whole_model_and_every_block(kind: str, model_folder: ModelFolder) -> None:
    folder = model_folder(kind)
    skeleton, source = opened(folder)
    expected = peer(skeleton, folder)
    whole = materialize(skeleton.model, source.load(skeleton.parameters), skeleton.model)
    assert_same(whole, expected)
    for index in range(skeleton.num_blocks):
        path = f"{skeleton.block_path}.{index}"
        tensors = source.load(skeleton.parameters_of_block(index))
        local = {name.removeprefix(path + "."): tensor for name, tensor in tensors.items()}
        block = materialize(skeleton.block(index), local, skeleton.model)
        assert_same(block, expected.get_submodule(path))
    assert all(p.is_meta for p in skeleton.model.parameters())
    inputs = some_input(skeleton)
    with torch.no_grad():
        assert torch.equal(whole(**inputs)[0], expected(**inputs)[0])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_bfloat16_models_keep_their_buffers_dtype(kind: str, model_folder: ModelFolder) -> None:
    folder = model_folder(kind, dtype=torch.bfloat16)
    skeleton, source = opened(folder)
    whole = materialize(skeleton.model, source.load(skeleton.parameters), skeleton.model)
    assert_same(whole, peer(skeleton, folder))


def test_scaled_rotary_frequencies(model_folder: ModelFolder) -> None:
    folder = model_folder("llama", rope_parameters={"rope_theta": 10000.0, **SCALED_ROPE})
    skeleton, source = opened(folder)
    whole = materialize(skeleton.model, source.load(skeleton.parameters), skeleton.model)
    assert_same(whole, peer(skeleton, folder))


def test_what_is_left_stays_on_meta(model_folder: ModelFolder) -> None:
    skeleton, source = opened(model_folder("llama"))
    tensors = source.load(skeleton.stem_head_parameters)
    shell = materialize(skeleton.model, tensors, skeleton.model, leave=(skeleton.block_path,))
    on_meta = {name for name, p in shell.named_parameters() if p.is_meta}
    assert on_meta == {n for i in range(3) for n in skeleton.parameters_of_block(i)}


def test_tied_parameters_stay_one(model_folder: ModelFolder) -> None:
    skeleton, source = opened(model_folder("gemma3"))
    whole = materialize(skeleton.model, source.load(skeleton.parameters), skeleton.model)
    assert whole.get_parameter("lm_head.weight") is whole.get_parameter("model.embed_tokens.weight")


def test_tensors_are_used_without_a_copy(model_folder: ModelFolder) -> None:
    skeleton, source = opened(model_folder("llama"))
    tensors = source.load(skeleton.parameters)
    whole = materialize(skeleton.model, tensors, skeleton.model)
    assert all(p.data_ptr() == tensors[n].data_ptr() for n, p in whole.named_parameters())


def test_a_missing_parameter_is_an_error(model_folder: ModelFolder) -> None:
    skeleton, _ = opened(model_folder("llama"))
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight \[64, 64\]"):
        materialize(skeleton.block(0), {}, skeleton.model)


class Unfillable(LlamaForCausalLM):  # type: ignore[misc]
    """Has a buffer that its initialisation does not know."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.register_buffer("lookup", torch.arange(4.0), persistent=False)


def test_a_buffer_that_nothing_fills_is_an_error(model_folder: ModelFolder) -> None:
    skeleton, source = opened(model_folder("llama"))
    with torch.device("meta"):
        model = Unfillable(skeleton.config)
    with pytest.raises(ModelError, match="buffer lookup"):
        materialize(model, source.load(skeleton.parameters), model)
