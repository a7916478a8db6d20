"""Memory is counted exactly: weights, buffers and caches of real loaded models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from blockwright.anatomy import build_skeleton, skeleton_of_config
from blockwright.errors import ModelError
from blockwright.formats import FormatLinear
from blockwright.kvcache import formats_for, quantizable_layers, quantized_cache
from blockwright.kvcache import held_bytes as held_cache_bytes
from blockwright.machine import count_memory
from blockwright.types import CacheFormat
from tests.conftest import ModelFolder
from tests.models import KINDS, random_model, tiny_config

TEXT_KINDS = [kind for kind in KINDS if kind != "vit"]
DECODERS = [kind for kind in TEXT_KINDS if kind != "bert"]


def held_bytes(model: nn.Module) -> int:
    """Bytes of all distinct tensors of a loaded model, packed ones as they are resident."""
    packed = [module for module in model.modules() if isinstance(module, FormatLinear)]
    own = {id(p) for module in packed for p in module.parameters()}
    tensors = {
        t.untyped_storage().data_ptr(): t.nbytes
        for t in (*model.parameters(), *model.buffers())
        if id(t) not in own and t.nbytes
    }
    return sum(tensors.values()) + sum(module.resident_bytes for module in packed)


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sites_and_what_is_beside_them_are_the_whole_model(
    kind: str, dtype: torch.dtype, model_folder: ModelFolder
) -> None:
    folder = model_folder(kind, dtype=dtype)
    skeleton = build_skeleton(folder)
    sites = sum(
        site.shape[0] * site.shape[1] * skeleton.parameters[site.parameter].dtype.itemsize
        for site in skeleton.sites
        if site.parameter
    )
    builder = AutoModelForCausalLM if skeleton.task == "causal-lm" else AutoModel
    loaded = builder.from_pretrained(folder, dtype="auto")
    assert sites + count_memory(skeleton).fixed_bytes == held_bytes(loaded)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 40])
def test_caches_are_those_of_the_model(kind: str, tokens: int) -> None:
    model = random_model(kind)
    memory = count_memory(skeleton_of_config(tiny_config(kind)))
    ids = torch.arange(tokens)[None]
    cache = None
    with torch.no_grad():
        for part in (ids[:, : tokens - 1], ids[:, tokens - 1 :]):
            if part.numel():
                cache = model(part, past_key_values=cache, use_cache=True).past_key_values
    layers = cache.layers if cache is not None else []
    real = [sum(t.untyped_storage().nbytes() for t in (la.keys, la.values)) for la in layers]
    assert [growth.at(tokens) for growth in memory.caches.values()] == real


QUANTIZED = ("int8@page=8,window=0", "int4@keys=token,page=8,sort=true,window=4", "bfp4-b8@page=8")


@pytest.mark.parametrize("kind", DECODERS)
def test_quantized_caches_are_counted_as_they_are_held(kind: str) -> None:
    model, config = random_model(kind), tiny_config(kind)
    formats = [CacheFormat.parse(name) for name in QUANTIZED]
    memory = count_memory(skeleton_of_config(config), formats)
    for format in formats:
        layers = quantizable_layers(model.config, format)
        stands = [format.name in found for found in memory.quantized.values()]
        assert [index for index, stood in enumerate(stands) if stood] == list(layers)
        for tokens in (2, 9, 17, 23, 40, 57) if layers else ():
            cache = quantized_cache(model.config, formats_for(model.config, format))
            with torch.no_grad():
                for ids in torch.arange(tokens)[None].split([tokens - 1, 1], 1):
                    model(ids, past_key_values=cache, use_cache=True)
            named = {name: format.name for name, f in memory.quantized.items() if format.name in f}
            assert memory.cache_bytes(tokens, named) == held_cache_bytes(cache)


def test_an_encoder_has_no_cache() -> None:
    assert count_memory(skeleton_of_config(tiny_config("bert"))).caches == {}


def test_a_model_of_images_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="vit: memory and latency are counted for models of text"):
        count_memory(skeleton_of_config(tiny_config("vit")))


def test_activations_grow_with_what_is_read_at_once() -> None:
    narrow, wide = (
        count_memory(skeleton_of_config(tiny_config("llama", intermediate_size=inner)))
        for inner in (96, 4096)
    )
    gained = wide.activation_bytes - narrow.activation_bytes
    # gate, up, their product and one more are alive at once, at most
    assert 2 * 128 * 4 * (4096 - 96) <= gained <= 4 * 128 * 4 * (4096 - 96)
