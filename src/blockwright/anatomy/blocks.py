"""Finds the list of blocks: the longest outermost ``ModuleList`` whose members are of one class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from blockwright.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def find_blocks(model: nn.Module, config: PreTrainedConfig) -> str:
    """Path of the block list; raises ``ModelError`` where there is none to work on."""
    lists = _outermost_lists(model)
    kind = config.model_type
    if not lists:
        raise ModelError(f"{kind}: the model has no list of blocks (no nn.ModuleList)")
    path, blocks = max(lists, key=lambda item: (len(item[1]), _weights(item[1])))
    classes = sorted({type(block).__name__ for block in blocks})
    if len(classes) > 1:
        names = ", ".join(classes)
        raise ModelError(
            f"{kind}: the blocks of {path} are of several classes ({names}), which is not supported"
        )
    layers = getattr(config, "num_hidden_layers", len(blocks))
    if layers != len(blocks):
        raise ModelError(
            f"{kind}: config.json asks for {layers} layers, the longest list {path} has"
            f" {len(blocks)} blocks; only models with one block per layer are supported"
        )
    return path


def _outermost_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(outer + ".") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found.append((path, module))
    return found


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
