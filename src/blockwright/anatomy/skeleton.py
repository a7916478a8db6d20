"""The skeleton of a model: built on ``meta``, split into stem, blocks, head and sites."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
import transformers.initialization as init
from torch import Tensor, nn

from blockwright.anatomy.blocks import find_blocks
from blockwright.anatomy.configuration import (
    is_causal,
    read_config,
    stored_tensors,
    weights_dtype,
)
from blockwright.anatomy.sites import block_sites, table_sites
from blockwright.errors import ModelError
from blockwright.types import Site, SiteKind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


MANY_BLOCKS = 1000
"""Above this, the files must hold a tensor per block before the model is built."""


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.  Names of parameters are those of the model's state dict."""

    model: PreTrainedModel
    """On ``meta``, in evaluation mode, attention SDPA (if the class has it), experts eager."""
    config: PreTrainedConfig
    task: str
    """``causal-lm``, ``encoder`` or ``vision``."""
    block_path: str
    """``model.layers``."""

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.block_path)
        if not isinstance(blocks, nn.ModuleList):
            raise TypeError(f"{self.block_path} is a {type(blocks).__name__}, no ModuleList")
        return blocks

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def block(self, index: int) -> nn.Module:
        return self.blocks[index]

    @cached_property
    def tables(self) -> tuple[Site, ...]:
        """Embedding and head, one site when tied."""
        return table_sites(self.model)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Tables, then block by block its linears and the block itself."""
        inside = (site for index in range(self.num_blocks) for site in self.block_sites(index))
        return (*self.tables, *inside)

    def block_sites(self, index: int) -> tuple[Site, ...]:
        """Linear sites of a block, then the block."""
        return self._sites_by_block[index]

    @cached_property
    def linear_weights(self) -> int:
        """Weights of all block linears: what bits per weight are counted over."""
        return sum(site.weights for site in self.sites if site.kind is SiteKind.LINEAR)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters and persistent buffers, on ``meta``; tied ones under every name."""
        return dict(self.model.state_dict())

    def parameters_of_block(self, index: int) -> tuple[str, ...]:
        """Names of a block's parameters and persistent buffers."""
        prefix = f"{self.block_path}.{index}."
        return tuple(name for name in self.parameters if name.startswith(prefix))

    def dense_bytes(self, site: Site) -> int:
        """Bytes of a site's weight as the original stores it."""
        return site.shape[0] * site.shape[1] * self.parameters[site.parameter].itemsize

    def bytes_beside_sites(self, index: int) -> int:
        """Bytes of a block's parameters that are no site's weight: norms, biases."""
        own = {site.parameter for site in self.block_sites(index)}
        names = self.parameters_of_block(index)
        return sum(self.parameters[name].nbytes for name in names if name not in own)

    @cached_property
    def stem_head_parameters(self) -> tuple[str, ...]:
        """Names of all that stands outside the blocks."""
        prefix = self.block_path + "."
        return tuple(name for name in self.parameters if not name.startswith(prefix))

    @cached_property
    def stem_bytes(self) -> int:
        """Bytes of what is registered before the blocks."""
        return self._bytes_outside(before=True)

    @cached_property
    def head_bytes(self) -> int:
        """Bytes of what is registered after the blocks, tensors of the stem left out."""
        return self._bytes_outside(before=False)

    @cached_property
    def _sites_by_block(self) -> tuple[tuple[Site, ...], ...]:
        return tuple(
            block_sites(block, f"{self.block_path}.{index}", index)
            for index, block in enumerate(self.blocks)
        )

    def _bytes_outside(self, *, before: bool) -> int:
        first_block = next(iter(self.parameters_of_block(0)), None)
        seen: set[int] = set()
        total, past = 0, False
        tensors = self.model.state_dict(keep_vars=True)
        for name, tensor in tensors.items():
            past = past or name == first_block
            if name.startswith(self.block_path + ".") or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            total += tensor.nbytes if before != past else 0
        return total


def build_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Skeleton:
    """Build a model folder's skeleton; raises ``ModelError`` for what cannot be handled."""
    config = read_config(folder, trust_remote_code=trust_remote_code)
    many = _declares_many_blocks(config)
    stored = stored_tensors(folder) if config.dtype is None or many else {}
    if many and config.num_hidden_layers > len(stored):
        raise ModelError(
            f"{folder}: its config declares {config.num_hidden_layers} blocks, its files hold"
            f" {len(stored)} tensors; repair num_hidden_layers in config.json"
        )
    config.dtype = weights_dtype(config, stored)
    skeleton = skeleton_of_config(config, trust_remote_code=trust_remote_code)
    if _has_optional_pooler(skeleton.model) and not _any_pooler(stored or stored_tensors(folder)):
        model = _built_on_meta(config, trust_remote_code, add_pooling_layer=False)
        skeleton = replace(skeleton, model=model, config=model.config)
    return skeleton


def skeleton_of_config(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Skeleton:
    """The skeleton of a config alone, in the config's dtype (fp32 where it has none)."""
    model = _built_on_meta(config, trust_remote_code)
    return Skeleton(model, model.config, _task(model), find_blocks(model, model.config))


def _built_on_meta(
    config: PreTrainedConfig, trust_remote_code: bool, **options: Any
) -> PreTrainedModel:
    builder = transformers.AutoModelForCausalLM if is_causal(config) else transformers.AutoModel
    dtype = weights_dtype(config, {})
    options |= {"dtype": dtype, "experts_implementation": "eager"}
    options |= {"trust_remote_code": trust_remote_code}
    try:
        with torch.device("meta"), init.meta_device_safe_creation_ops():
            model = builder.from_config(copy.deepcopy(config), **options)
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    except Exception as error:  # a config's nonsense shows in the model's code in any form
        text = " ".join(str(error).split())
        raise ModelError(f"{config.model_type}: the model cannot be built: {text}") from error
    _keep_in_fp32(model, dtype)
    return model.eval()


def _task(model: PreTrainedModel) -> str:
    if is_causal(model.config):
        return "causal-lm"
    tasks = {"input_ids": "encoder", "pixel_values": "vision"}
    if model.main_input_name not in tasks:
        raise ModelError(
            f"{model.config.model_type} takes {model.main_input_name};"
            f" Blockwright handles models of {' or '.join(tasks)}"
        )
    return tasks[model.main_input_name]


def _keep_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Some parameters are loaded in fp32 whatever the dtype: make them fp32 here as well."""
    plan = {glob.replace("*", ".*"): kept for glob, kept in model._get_dtype_plan(dtype).items()}
    for name, tensor in model.state_dict().items():
        kept = next((plan[pattern] for pattern in plan if re.search(pattern, name)), None)
        if kept is not None:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if leaf in module._buffers:
                module._buffers[leaf] = tensor.to(kept)
            else:
                module._parameters[leaf] = nn.Parameter(tensor.to(kept), requires_grad=False)


def _declares_many_blocks(config: PreTrainedConfig) -> bool:
    """So many that building them without need would take long."""
    blocks = getattr(config, "num_hidden_layers", 0)
    return isinstance(blocks, int) and blocks > MANY_BLOCKS


def _has_optional_pooler(model: PreTrainedModel) -> bool:
    options = inspect.signature(type(model).__init__).parameters
    return "add_pooling_layer" in options and not is_causal(model.config)


def _any_pooler(stored: Collection[str]) -> bool:
    return any("pooler" in name for name in stored)
