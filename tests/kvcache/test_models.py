"""Quantized caches in whole models: exact inside the window, as predicted outside of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from blockwright.errors import ModelError
from blockwright.kvcache import (
    DecodedAttention,
    cache_of,
    chosen_formats,
    decoded,
    formats_for,
    held_bytes,
    own_layers,
    quantizable_layers,
    quantized_cache,
)
from blockwright.types import CacheFormat
from tests.models import BLOCKS, random_model

FULL = ["llama", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "qwen3_moe", "mixtral"]
"""Decoders that keep all tokens in every block."""
TOKENS = 48
ROUGH = "int4@page=8,window=8"


def text(rows: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, 128, (rows, tokens), generator=torch.Generator().manual_seed(0))


def cache_for(model: Any, name: str) -> Any:
    return quantized_cache(model.config, formats_for(model.config, CacheFormat.parse(name)))


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, cache: Any, *steps: int) -> Tensor:
    """Logits of a text that is read in parts of so many tokens."""
    parts = ids.split(list(steps), dim=1)
    found = [model(part, past_key_values=cache, use_cache=True).logits for part in parts]
    return torch.cat(found, 1)


@torch.no_grad()
def generated(model: Any, ids: Tensor, cache: Any, **options: Any) -> Tensor:
    """Twelve new tokens."""
    found: Tensor = model.generate(
        ids, past_key_values=cache, max_new_tokens=12, do_sample=False, eos_token_id=None, **options
    )
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("kind", [*FULL, "gemma3"])
def test_within_the_window_nothing_differs(kind: str) -> None:
    model, ids = random_model(kind), text()
    steps = (TOKENS - 8, *[1] * 8)
    ordinary = logits_of(model, ids, DynamicCache(config=model.config), *steps)
    assert torch.equal(logits_of(model, ids, cache_for(model, "int1@window=48"), *steps), ordinary)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, ROUGH) for kind in FULL),
        ("llama", "int8@page=8,window=0"),
        ("gpt_neox", "bfp4-b8@page=8,window=8"),
        ("qwen3", "int3@keys=token,page=8,window=0"),
    ],
)
def test_decoding_is_what_attention_over_both_kinds_of_keys_computes(kind: str, name: str) -> None:
    """A rounding that goes the other way for the last bit of a key moves few logits."""
    model, ids = random_model(kind), text()
    found = logits_of(model, ids, cache_for(model, name), *[1] * TOKENS)
    with torch.no_grad(), DecodedAttention(CacheFormat.parse(name), "a block"):
        at_once = model(ids, use_cache=False).logits
    with torch.no_grad():
        exact = model(ids, use_cache=False).logits
    assert (found - at_once).abs().median() < 1e-3 * (found - exact).abs().median()


@pytest.mark.parametrize(
    "kind",
    ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gpt_neox"))],
)
def test_eight_bits_are_near(kind: str) -> None:
    model, ids = random_model(kind), text()
    ordinary = logits_of(model, ids, DynamicCache(config=model.config), *[1] * TOKENS)
    errors = []
    for bits in (8, 4, 2):
        cache = cache_for(model, f"int{bits}@page=8,window=0")
        found = logits_of(model, ids, cache, *[1] * TOKENS)
        errors.append(float((found - ordinary).norm() / ordinary.norm()))
    assert errors[0] < 0.03
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_beams_are_those_of_the_ordinary_cache(kind: str) -> None:
    model, ids = random_model(kind), text(tokens=20)
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        ordinary = generated(model, ids, None, **options)
        exact = generated(model, ids, cache_for(model, "int1@window=32"), **options)
        near = generated(model, ids, cache_for(model, "int8@page=8,window=0"), **options)
        assert torch.equal(exact, ordinary)
        assert (near == ordinary).float().mean() > 0.8


def test_padding_on_the_left_changes_no_row() -> None:
    model, ids = random_model("llama"), text(rows=1, tokens=20)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1)
    both = torch.cat([padded, text(rows=1, tokens=26)])
    mask = (torch.arange(26) >= torch.tensor([[6], [0]])).long()
    for name in ("int1@window=64", "int8@page=8,window=0"):
        alone = generated(model, ids, cache_for(model, name))
        beside = generated(model, both, cache_for(model, name), attention_mask=mask)
        assert torch.equal(beside[:1], alone)


def test_assisted_decoding_crops() -> None:
    model, ids = random_model("llama"), text(rows=1, tokens=24)
    ordinary = generated(model, ids, None)
    options = {"prompt_lookup_num_tokens": 4}
    assert torch.equal(
        generated(model, ids, cache_for(model, "int1@window=64"), **options), ordinary
    )


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_sliding_windows_forget_what_fell_out(kind: str) -> None:
    """Windows of 16 tokens; reading is that of attention over both kinds of keys."""
    name = "int4@page=8,window=4"
    model, ids = random_model(kind), text()
    exact = logits_of(model, ids, DynamicCache(config=model.config), *[1] * TOKENS)
    for steps in ((*[1] * TOKENS,), (30, *[1] * 18), (5, 20, 23)):
        cache = cache_for(model, name)
        found = logits_of(model, ids, cache, *steps)
        assert (found - exact).abs().max() > 0
        for layer in cache.layers:
            held = layer.held_tokens
            assert held < 15 + 8 if layer.is_sliding else held == TOKENS
            assert layer.get_seq_length() == TOKENS
        if len(steps) == TOKENS:
            with torch.no_grad(), DecodedAttention(CacheFormat.parse(name), "a block"):
                at_once = model(ids, use_cache=False).logits
            assert (found - at_once).abs().median() < 1e-3 * (found - exact).abs().median()


def test_a_sliding_cache_is_cropped_until_it_is_full() -> None:
    model, ids = random_model("mistral"), text()
    exact = logits_of(model, ids[:, :12], DynamicCache(config=model.config), 12)
    cache = cache_for(model, "int8@page=8,window=4")
    logits_of(model, ids[:, :12], cache, 12)
    cache.crop(-5)
    assert cache.get_seq_length() == 7
    found = logits_of(model, ids[:, 7:12], cache, 5)
    assert torch.allclose(found, exact[:, 7:], atol=0.2)
    logits_of(model, ids[:, 12:], cache, TOKENS - 12)
    with pytest.raises(ModelError, match="slides over 16 tokens cannot be cropped once it is full"):
        cache.crop(-1)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_short_windows_keep_their_own_cache() -> None:
    gemma, mistral = random_model("gemma3"), random_model("mistral")
    format = CacheFormat.parse(ROUGH)
    assert quantizable_layers(gemma.config, format) == (1,)
    formats = formats_for(gemma.config, format)
    assert "blocks 0, 2 stays in the model's own dtype" in own_layers(gemma.config, formats)
    llama = random_model("llama").config
    assert own_layers(llama, formats_for(llama, format)) == ""
    ids = text()
    found = logits_of(gemma, ids, quantized_cache(gemma.config, formats), *[1] * TOKENS)
    exact = logits_of(gemma, ids, DynamicCache(config=gemma.config), *[1] * TOKENS)
    assert (found - exact).abs().max() > 0
    with pytest.raises(ModelError, match="mistral: no block keeps keys and values of more tokens"):
        formats_for(mistral.config, format)
    with pytest.raises(ModelError, match=r"block 2 has no cache that .* can hold; .* one: 1"):
        quantized_cache(gemma.config, {2: format})


def test_heads_that_share_keys_are_stored_once() -> None:
    model = random_model("llama")
    caches = [cache_for(model, "int4@page=8,window=8"), DynamicCache(config=model.config)]
    for cache in caches:
        logits_of(model, text(), cache, TOKENS)
    per_token = BLOCKS * 2 * 2 * 2 * 16  # blocks, rows, keys and values, KV heads, channels
    assert held_bytes(caches[1]) == 4 * per_token * TOKENS
    exact, paged = 4 * per_token * 8, per_token * 40 // 2
    ranges = BLOCKS * 2 * 2 * 5 * (16 + 8) * 8  # rows, heads, pages, ranges of keys and values
    assert held_bytes(caches[0]) == exact + paged + ranges


def test_the_same_tokens_give_the_same_bits() -> None:
    model, ids = random_model("qwen3"), text()
    runs = [logits_of(model, ids, cache_for(model, ROUGH), 30, *[1] * 18) for _ in range(2)]
    assert torch.equal(*runs)


def test_a_folder_says_which_cache_it_wants() -> None:
    config = random_model("llama").config
    assert cache_of(config) is None
    spec = CacheFormat.parse(ROUGH).spec()
    config.quantization_config = {"quant_method": "blockwright", "cache": {"1": spec}}
    assert chosen_formats(config) == {1: CacheFormat.parse(ROUGH)}
    assert chosen_formats(config, "keep") == {}
    assert set(chosen_formats(config, "int8")) == {0, 1, 2}
    config.quantization_config["quant_method"] = "another"
    assert chosen_formats(config) == {}


def test_attention_that_is_not_seen_is_an_error() -> None:
    around = decoded({1: CacheFormat.parse(ROUGH)})
    with around(0):
        pass
    with pytest.raises(ModelError, match="block 1: its attention is not PyTorch's"), around(1):
        pass
