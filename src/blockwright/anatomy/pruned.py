"""The config of a model with fewer blocks, checked to describe exactly the blocks that stay."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn

from blockwright.anatomy.skeleton import Skeleton, skeleton_of_config
from blockwright.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LAYER_COUNT = "num_hidden_layers"
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""May be lists whose length is the number of layers by chance."""


def pruned_config(
    config: PreTrainedConfig, keep: Sequence[int], *, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The config with only the blocks ``keep`` (indices, rising): an ordinary model of its own.

    Lists with one entry per layer are pruned.  Raises ``ModelError`` when the pruned model's blocks
    are not those of the original, because this architecture derives them from the layer's index.
    """
    layers = getattr(config, LAYER_COUNT, None)
    if not isinstance(layers, int):
        raise _not_expressible(config, f"it has no {LAYER_COUNT}")
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= layers:
        raise ValueError(f"keep {list(keep)}: rising indices of the {layers} blocks are needed")
    pruned = copy.deepcopy(config)
    lists = _per_layer_lists(config, layers)
    setattr(pruned, LAYER_COUNT, len(keep))
    for name, values in lists.items():
        setattr(pruned, name, type(values)(values[index] for index in keep))
    original = skeleton_of_config(config, trust_remote_code=trust_remote_code)
    try:
        fewer = skeleton_of_config(pruned, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise _not_expressible(config, str(error)) from None
    _check_same_blocks(original, fewer, keep)
    return pruned


def _per_layer_lists(config: PreTrainedConfig, layers: int) -> dict[str, Any]:
    common = {*transformers.PreTrainedConfig().to_dict(), *TOKEN_FIELDS}
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == layers and name not in common
    }


def _check_same_blocks(original: Skeleton, fewer: Skeleton, keep: Sequence[int]) -> None:
    index_names = _index_attributes(original)
    for position, index in enumerate(keep):
        was = _described(original.block(index), index_names)
        now = _described(fewer.block(position), index_names)
        if was != now:
            changed = sorted(n for n in was.keys() | now.keys() if was.get(n) != now.get(n))
            raise _not_expressible(original.config, f"block {index} would change its {changed[0]}")
    outside = [
        {name: tuple(skeleton.parameters[name].shape) for name in skeleton.stem_head_parameters}
        for skeleton in (original, fewer)
    ]
    if outside[0] != outside[1]:
        raise _not_expressible(original.config, "its stem or head would change")


def _described(block: nn.Module, leave_out: set[str]) -> dict[str, Any]:
    """Class, parameters, buffers and plain attributes of a block and all modules inside it."""
    found: dict[str, Any] = {}
    for path, module in block.named_modules():
        found[f"class of {path or 'block'}"] = type(module)
        for name, value in vars(module).items():
            full = f"{path}.{name}" if path else name
            if isinstance(value, bool | int | float | str) and full not in leave_out:
                found[full] = value
    tensors = [*block.named_parameters(), *block.named_buffers()]
    return found | {f"shape of {name}": (tuple(t.shape), t.dtype) for name, t in tensors}


def _index_attributes(skeleton: Skeleton) -> set[str]:
    """Attributes that are the block's index in every block (``self_attn.layer_idx``)."""
    described = [_described(block, set()) for block in skeleton.blocks]
    return {
        name
        for name, value in described[0].items()
        if type(value) is int and all(d.get(name) == i for i, d in enumerate(described))
    }


def _not_expressible(config: PreTrainedConfig, reason: str) -> ModelError:
    return ModelError(
        f"{config.model_type}: these blocks cannot be dropped: the layers depend on their index in"
        f" a way that the config cannot express ({reason})"
    )
