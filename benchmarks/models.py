"""Random models of real sizes, and their uniform round-to-nearest folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig

from blockwright.anatomy import build_skeleton, skeleton_of_config
from blockwright.assemble import Layout, assemble
from blockwright.checkpoint import Checkpoint, ParameterSource, ShardWriter
from blockwright.registry import format_named, method_named
from blockwright.stream import weight_of
from blockwright.types import PackedFormat, Site, SiteKind, Statistics

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""About 1.1 billion parameters with 22 blocks."""


def random_llama(folder: Path, blocks: int) -> Path:
    """A folder of random bf16 weights, written tensor by tensor; kept if it is there."""
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**LLAMA_1B, num_hidden_layers=blocks, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    skeleton = skeleton_of_config(config)
    generator = torch.Generator().manual_seed(0)
    layout = {n: (torch.bfloat16, tuple(t.shape)) for n, t in skeleton.parameters.items()}
    with ShardWriter(folder, layout) as writer:
        for name, (_, shape) in layout.items():
            if len(shape) == 1:
                tensor = torch.ones(shape)
            else:
                tensor = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
            writer.write(name, tensor.bfloat16())
    return folder


TABLES = "int8"
"""Format of embedding and head in uniform folders."""


def uniform_folder(model: Path, format_name: str, out: Path) -> Path:
    """The model with all block linears rounded to nearest in one format, its tables in ``TABLES``;
    kept if it is there.
    """
    if (out / "config.json").is_file():
        return out
    checkpoint = Checkpoint.open(model)
    skeleton = build_skeleton(model)
    parameters = ParameterSource(skeleton.model, checkpoint)
    method = method_named("rtn")
    names = {SiteKind.LINEAR: format_name, SiteKind.TABLE: TABLES}
    formats = {kind: format_named(name) for kind, name in names.items()}

    def stored_tensors(site: Site) -> Mapping[str, Tensor]:
        W_OI = weight_of(site, parameters.load([site.parameter])[site.parameter])
        format = formats[site.kind]
        if not isinstance(format, PackedFormat):
            raise TypeError(f"{format.name} is no packed format")
        solution = method.solve(W_OI, Statistics(tokens=0), format)
        return format.pack(solution, None, torch.bfloat16).stored_tensors()

    sites = [site for site in skeleton.sites if site.kind in formats]
    specs = {site.id: formats[site.kind].spec() for site in sites}
    layout = Layout(skeleton, specs, range(skeleton.num_blocks))
    assemble(layout, parameters, checkpoint, stored_tensors, out)
    return out
