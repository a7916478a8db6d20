"""Reads a model's configuration and refuses early what cannot be handled block by block.

transformers' names are looked up when used: its quantizer registry imports this package while
transformers itself is still being imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors import SafetensorError, safe_open

from blockwright.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_FILE = "config.json"
OURS = "blockwright"
"""``quant_method`` of fitted folders: they have the skeleton of their original."""


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model folder; raises ``ModelError`` in one line."""
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist")
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} has no {CONFIG_FILE}: it is no model folder of transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # every config class checks its fields in its own way
        raise _config_error(folder, error, trust_remote_code) from error
    _refuse(folder, config)
    return config


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether the model is a language model that predicts the next token."""
    auto = transformers.models.auto.modeling_auto
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.architectures:
        known = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        return config.architectures[0] == known or remote
    has_head = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return remote or (has_head and config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def stored_tensors(folder: Path) -> dict[str, str]:
    """Names and safetensors dtypes of the tensors in a folder, in the order in which files sort."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} is truncated, damaged or unreadable: {reason}") from None
    return found


def weights_dtype(config: PreTrainedConfig, stored: Mapping[str, str]) -> torch.dtype:
    """The dtype that ``from_pretrained`` gives weights: the config's, else the first stored one."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    floating = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    floating["BF16"] = torch.bfloat16
    return next((floating[code] for code in stored.values() if code in floating), torch.float32)


def _refuse(folder: Path, config: PreTrainedConfig) -> None:
    kind, classes = config.model_type, config.architectures or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ModelError(
            f"{folder / CONFIG_FILE}: architectures is {classes!r}, a list of class names is needed"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder}: {kind} is an encoder-decoder;"
            " Blockwright takes models with one list of blocks"
        )
    parts = [name for name in config.sub_configs if _has_layers(getattr(config, name, None))]
    if parts:
        raise ModelError(
            f"{folder}: {kind} wraps several models ({', '.join(parts)});"
            " save the one to compress as a model of its own and give that folder"
        )
    quantized = getattr(config, "quantization_config", None) or {}
    method = quantized.get("quant_method", OURS) if isinstance(quantized, dict) else quantized
    if method != OURS:
        raise ModelError(f"{folder} is already compressed by {method}; give the original model")


def _has_layers(part: object) -> bool:
    return isinstance(part, transformers.PreTrainedConfig) and hasattr(part, "num_hidden_layers")


def _config_error(folder: Path, error: Exception, trusted: bool) -> ModelError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text and not trusted:
        return ModelError(
            f"{folder} needs code that comes with the model; if you trust its author,"
            " run again with --trust-remote-code"
        )
    first_sentence = text.partition(". ")[0].rstrip(".")
    return ModelError(
        f"{folder / CONFIG_FILE} cannot be used: {first_sentence}; repair it, or use a version of"
        " transformers that knows this model"
    )
