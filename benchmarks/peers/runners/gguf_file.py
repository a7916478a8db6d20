"""A GGUF file of a Llama checkpoint, written with the ``gguf`` library.

No vocabulary; Q4_0 (groups of 32) or Q8_0 block linears, Q8_0 tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors import safe_open
from transformers import AutoConfig

from benchmarks.peers.job import SpeedJob

ARCHITECTURE = "llama"
TABLES = ("token_embd.weight", "output.weight")
LINEARS = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}


def write_gguf(job: SpeedJob, target: Path) -> None:
    """Write the file; ``SystemExit`` for other models."""
    config = AutoConfig.from_pretrained(job.model)
    if config.model_type != ARCHITECTURE:
        raise SystemExit(
            f"{job.model} is a {config.model_type}; this writes GGUF files of {ARCHITECTURE} alone"
        )
    writer = GGUFWriter(target, ARCHITECTURE, use_temp_file=True)
    add_config(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, array in tensors(Path(job.model)):
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise SystemExit(f"{job.model}: {name} has no name in GGUF files of {ARCHITECTURE}")
        add_tensor(writer, found, rotated(name, array, config), job.bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_config(writer: GGUFWriter, config: Any) -> None:
    """What llama.cpp builds the model from."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def add_tensor(writer: GGUFWriter, name: str, array: np.ndarray[Any, Any], bits: int) -> None:
    """Matrices are rounded, vectors stay fp32."""
    if array.ndim == 1:
        writer.add_tensor(name, array)
        return
    kind = GGMLQuantizationType.Q8_0 if name in TABLES else LINEARS[bits]
    writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Names and fp32 values of a checkpoint."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                yield name, file.get_tensor(name).to(torch.float32).numpy()


def rotated(name: str, array: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """Rows of queries and keys in the order of llama.cpp, which rotates neighbours (2i, 2i + 1);
    transformers rotates (i, i + d / 2).
    """
    heads = {
        "self_attn.q_proj.weight": config.num_attention_heads,
        "self_attn.k_proj.weight": config.num_key_value_heads,
    }
    count = next((heads[end] for end in heads if name.endswith(end)), None)
    if count is None:
        return array
    halves = array.reshape(count, 2, head_dim(config) // 2, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def head_dim(config: Any) -> int:
    """Width of one attention head."""
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)
