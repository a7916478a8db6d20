"""The bundled model for claims: its linears with inputs, and the model block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.anatomy import build_skeleton
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.cli.demo import bundled_model
from blockwright.stream import Inputs, Stream
from blockwright.texts import load_tokenizer, tokenize
from blockwright.texts.bundled import bundled_documents
from tests.layers import Layer

LENGTH = 512


def bundled_ids(split: str, tokens: int, seed: int = 0) -> Tensor:
    """Windows [N, 512] of a shipped text."""
    tokenizer = load_tokenizer(bundled_model())
    documents = bundled_documents(split)
    return tokenize(documents, tokenizer, LENGTH, tokens, seed, name=split).ids


def bundled_inputs(split: str, tokens: int, seed: int = 0) -> Inputs:
    """The same, for a stream."""
    return Inputs.of_tokens(bundled_ids(split, tokens, seed))


def bundled_stream() -> Stream:
    """The model in fp32."""
    skeleton = build_skeleton(bundled_model())
    source = ParameterSource(skeleton.model, Checkpoint.open(bundled_model()))
    return Stream(skeleton, source, dtype=torch.float32)


def bundled_layers(block: int, tokens: int) -> dict[str, Layer]:
    """The linears of a block by their last name, with calibration and held-out inputs."""
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32)
    prefix = f"model.layers.{block}."
    linears: dict[str, torch.nn.Linear] = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear)
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen[name].append(inputs[0].flatten(0, -2))

    for name, linear in linears.items():
        linear.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for split in ("calibration", "heldout"):
            model(bundled_ids(split, tokens))
    return {name: Layer(linear.weight.detach(), *seen[name]) for name, linear in linears.items()}
