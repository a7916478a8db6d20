"""A config without some blocks describes the model in which those blocks do nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.anatomy import build_skeleton, pruned_config
from blockwright.errors import ModelError
from tests.models import KINDS, VOCAB, random_model, tiny_config


class Skipped(nn.Module):
    """A block that hands its hidden states on; all else is the block's."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        result = self.block(*args, **kwargs)
        return hidden if isinstance(result, Tensor) else (hidden, *result[1:])


def block_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    return next((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList))


def without(model: PreTrainedModel, keep: list[int]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    pruned: PreTrainedModel = type(model)(pruned_config(config, keep)).eval()
    path, _ = block_list(model)
    state = {}
    for name, tensor in model.state_dict().items():
        index, _, rest = name.removeprefix(path + ".").partition(".")
        if not name.startswith(path + "."):
            state[name] = tensor
        elif int(index) in keep:
            state[f"{path}.{keep.index(int(index))}.{rest}"] = tensor
    pruned.load_state_dict(state)
    return pruned


@pytest.mark.parametrize("keep", [[0, 2], [1], [1, 2]])
@pytest.mark.parametrize("kind", KINDS)
def test_pruned_model_equals_skipped_blocks(kind: str, keep: list[int]) -> None:
    model = random_model(kind)
    pruned = without(model, keep)
    _, blocks = block_list(model)
    for index in set(range(len(blocks))) - set(keep):
        blocks[index] = Skipped(blocks[index])
    generator = torch.Generator().manual_seed(2)
    inputs = {"input_ids": torch.randint(3, VOCAB, (2, 40), generator=generator)}
    if kind == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    with torch.no_grad():
        assert torch.equal(pruned(**inputs)[0], model(**inputs)[0])


def test_lists_per_layer_are_pruned_and_others_stay() -> None:
    config = tiny_config("gemma3", eos_token_id=[2, 3, 4])
    pruned = pruned_config(config, [1, 2])
    assert pruned.num_hidden_layers == 2
    assert pruned.layer_types == ["full_attention", "sliding_attention"]
    assert pruned.eos_token_id == [2, 3, 4]
    assert config.num_hidden_layers == 3


def test_pruned_folder_is_an_ordinary_model(tmp_path: Path) -> None:
    model = random_model("gemma3")
    without(model, [0, 2]).save_pretrained(tmp_path)
    skeleton = build_skeleton(tmp_path)
    assert skeleton.num_blocks == 2
    assert skeleton.config.layer_types == ["sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_layers_that_depend_on_their_index_are_refused(kind: str, fields: dict[str, Any]) -> None:
    config = tiny_config(kind, **fields)
    with pytest.raises(ModelError, match="depend on their index") as caught:
        pruned_config(config, [1, 2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [[], [2, 1], [0, 0], [0, 3], [-1]])
def test_keep_must_be_rising_indices(keep: list[int]) -> None:
    with pytest.raises(ValueError, match="rising indices of the 3 blocks"):
        pruned_config(tiny_config("llama"), keep)
