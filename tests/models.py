"""Tiny random models of many architectures, saved as ordinary model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

VOCAB, HIDDEN, INNER, BLOCKS = 128, 64, 96, 3

DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_OF_16 = {"head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", DECODER | HEADS_OF_16),
    "mistral": ("MistralForCausalLM", DECODER | {"sliding_window": 16}),
    "gemma3": (
        "Gemma3ForCausalLM",
        DECODER
        | HEADS_OF_16
        | {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCAB,
            "n_embd": HIDDEN,
            "n_layer": BLOCKS,
            "n_head": 4,
            "n_positions": 128,
            "n_inner": INNER,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {k: v for k, v in DECODER.items() if k != "num_key_value_heads"},
    ),
    "opt": (
        "OPTForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": INNER,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "bert": (
        "BertModel",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        DECODER | HEADS_OF_16 | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32},
    ),
    "mixtral": ("MixtralForCausalLM", DECODER | EXPERTS | {"num_local_experts": 4}),
    "vit": (
        "ViTModel",
        {
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
}


def tiny_config(kind: str, **overrides: Any) -> PreTrainedConfig:
    """The configuration of a kind; ``overrides`` are config fields."""
    name, fields = KINDS[kind]
    return getattr(transformers, name).config_class(**(fields | overrides))


def random_model(
    kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A model whose every parameter is random (norms and biases too, so that none can hide)."""
    config = tiny_config(kind, **overrides)
    torch.manual_seed(seed)
    model = getattr(transformers, KINDS[kind][0])(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            scale = 0.1 if parameter.ndim == 1 else 0.2
            parameter.copy_(around + scale * noise)
    return model


def tiny_model(
    kind: str,
    folder: Path,
    *,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Build, fill and save a model; returns the folder.  ``overrides`` are config fields."""
    model = random_model(kind, dtype=dtype, seed=seed, **overrides)
    model.save_pretrained(folder, max_shard_size="60KB" if sharded else "5GB")
    return folder
