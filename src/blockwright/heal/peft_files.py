"""Adapters in peft's files: ours are written so that peft loads them, and those that were trained
elsewhere stand at a fitted model's hosts and merge like ours.

    adapter_config.json, adapter_model.safetensors     names below ``base_model.model.``
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from blockwright.checkpoint import write_bytes_atomic, write_json_atomic
from blockwright.errors import AdapterError
from blockwright.heal.adapter import Attachment, Host
from blockwright.heal.adapters.bone import Bone
from blockwright.heal.adapters.dora import Dora
from blockwright.heal.adapters.lora import Lora
from blockwright.heal.adapters.miss import Miss
from blockwright.heal.sides import SideAttachment
from blockwright.heal.through_peft import (
    PackedBase,
    PeftAdapter,
    PeftAttachment,
    inject,
    peft_library,
)

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_adapter(model: nn.Module, attachments: Sequence[Attachment], folder: Path) -> None:
    """Write what was trained as peft loads it; paths beside hosts become LoRA of their rank.

    Raises ``AdapterError`` for what is trained in place, which peft's files cannot hold.
    """
    peft = peft_library("in peft's files")
    folder.mkdir(parents=True, exist_ok=True)
    beside = [each for each in attachments if isinstance(each, SideAttachment)]
    if attachments and len(beside) == len(attachments):
        config, tensors = _as_lora(peft, beside)
    elif attachments and all(isinstance(each, PeftAttachment) for each in attachments):
        config = getattr(model, "peft_config", {})["default"]
        tensors = peft.get_peft_model_state_dict(model)
    else:
        raise AdapterError(
            "peft's files hold adapters beside weights; what was trained here is stored in place:"
            " name an --adapter such as lora, or leave --save-adapter out"
        )
    data = {PREFIX + name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_bytes_atomic(folder / WEIGHTS_FILE, save(data, {"format": "pt"}))
    write_json_atomic(folder / CONFIG_FILE, _plain(config.to_dict()))


def _as_lora(peft: Any, beside: Sequence[SideAttachment]) -> tuple[Any, dict[str, Tensor]]:
    """A LoRA configuration and tensors of the same changes, scaled by 1."""
    tensors, ranks = {}, {}
    for each in beside:
        left, right = each.factors()
        ranks[each.host.path] = left.shape[1]
        tensors[f"{each.host.path}.lora_A.weight"] = right
        tensors[f"{each.host.path}.lora_B.weight"] = left
    config = peft.LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=list(ranks),
    )
    return config, tensors


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON has it, sets in a fixed order."""
    return {
        name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for name, value in sorted(config.items())
    }


def load_adapter(model: nn.Module, hosts: Sequence[Host], folder: Path) -> list[Attachment]:
    """Put an adapter of peft's files around a model's hosts.

    Raises ``AdapterError`` where the files are damaged, of a kind that is not known, or do not fit.
    """
    peft = peft_library("in peft's files")
    config, tensors = _read(peft, folder)
    adapter = _adapter_of(config, folder)
    standing = [host for host in hosts if host.replaceable]
    try:
        inject(model, standing, config)
        found = peft.set_peft_model_state_dict(model, tensors)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(f"adapter {folder} does not fit this model: {reason[:200]}") from None
    if found.unexpected_keys:
        raise AdapterError(
            f"adapter {folder} holds {found.unexpected_keys[0]}, for which this model has no place"
        )
    attachments: list[Attachment] = []
    for host in standing:
        layer = model.get_submodule(host.path)
        if isinstance(layer, PackedBase):
            model.set_submodule(host.path, layer.packed)
        elif layer is not host.module:
            fitting = replace(adapter, rank=_rank_of(layer))
            if reason := fitting.refusal(host):
                raise AdapterError(f"adapter {folder}: {host.name}: {reason}")
            attachments.append(PeftAttachment(host, layer, fitting))
    return attachments


def _read(peft: Any, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    try:
        known = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = peft.PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            f"adapter {folder} cannot be read: {reason[:200]}; it takes peft's {CONFIG_FILE} and"
            f" {WEIGHTS_FILE}"
        ) from None
    if known.get("modules_to_save"):
        raise AdapterError(f"adapter {folder} replaces whole modules, which is not supported")
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _adapter_of(config: Any, folder: Path) -> PeftAdapter:
    """Ours that knows the layers that a configuration makes."""
    kind = str(config.peft_type.value)
    if kind == "LORA":
        return Dora() if config.use_dora else Lora()
    if kind == "MISS":
        return Bone() if config.init_weights == "bat" else Miss()
    raise AdapterError(f"adapter {folder} is of peft's kind {kind}; LORA and MISS are known")


def _rank_of(layer: Any) -> int:
    ranks = getattr(layer, "r", None) or layer.miss_r
    return int(next(iter(ranks.values())))


@torch.no_grad()
def finite_adapter(attachments: Sequence[Attachment]) -> bool:
    """Whether all that was loaded is finite."""
    return all(
        bool(torch.isfinite(item.offset).all())
        for each in attachments
        for item in each.trained.values()
    )
