"""The order of a key's channels: free inside the cache; in the weights only along with the model's
rotary frequencies, which folders do not hold.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockwright.kvcache import formats_for, quantized_cache
from blockwright.types import CacheFormat
from tests.models import random_model

IDS = torch.randint(3, 128, (2, 40), generator=torch.Generator().manual_seed(0))
ROTARY = {"llama": 16, "qwen3": 16, "gpt_neox": 4}
"""Channels of a head that are rotated."""
HEAD = 16


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS, use_cache=False).logits
    return found


def head_order(rotated: int, *, pairs: bool) -> Tensor:
    """An order of a head's channels: rotated ones move in pairs (j, j + rotated / 2), the others
    freely.
    """
    draw = torch.Generator().manual_seed(3)
    half = rotated // 2
    pair = torch.arange(half).roll(1 if pairs else 0)
    rest = rotated + torch.randperm(HEAD - rotated, generator=draw)
    return torch.cat([pair, pair + half, rest])


def permute_rows(linear: Any, order: Tensor, first: int = 0, step: int = 1) -> None:
    """Reorder the outputs of every ``step``-th head."""
    for tensor in (linear.weight, linear.bias):
        if tensor is not None:
            heads = tensor.data.view(-1, HEAD, *tensor.shape[1:])
            heads[first::step] = heads[first::step][:, order]


def fold_order(model: nn.Module, order: Tensor) -> None:
    """Into whatever makes queries and keys: one order for all heads and blocks."""
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            permute_rows(module, order)
        elif name.endswith("query_key_value"):  # query, key and value of a head stand together
            permute_rows(module, order, 0, 3)
            permute_rows(module, order, 1, 3)
        elif name.endswith(("q_norm", "k_norm")):
            module.weight.data = module.weight.data[order]


@pytest.mark.parametrize("kind", ROTARY)
def test_pairs_move_only_with_their_frequencies(kind: str) -> None:
    model, rotated = random_model(kind), ROTARY[kind]
    original, order = logits(model), head_order(ROTARY[kind], pairs=True)
    fold_order(model, order)
    assert (logits(model) - original).abs().max() > 0.1
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq[order[: rotated // 2]]
    assert torch.allclose(logits(model), original, atol=2e-4)


def test_channels_that_are_not_rotated_move_freely() -> None:
    model = random_model("gpt_neox")
    original = logits(model)
    fold_order(model, head_order(ROTARY["gpt_neox"], pairs=False))
    assert torch.allclose(logits(model), original, atol=2e-4)


@pytest.mark.parametrize("kind", ROTARY)
def test_the_order_inside_the_cache_is_exact(kind: str) -> None:
    """Keys are whole numbers here, which eight bits hold, so reading them is exact or wrong."""
    caches = []
    for sort in ("true", "false"):
        format = CacheFormat.parse(f"bfp8-b{HEAD}@page=8,sort={sort},window=0")
        config = random_model(kind).config
        cache = quantized_cache(config, formats_for(config, format))
        draw = torch.Generator().manual_seed(1)
        keys = torch.randint(-9, 9, (2, 2, 24, HEAD), generator=draw).float()
        cache.update(keys, keys, 0)
        caches.append(cache.update(keys[:, :, :1], keys[:, :, :1], 0)[0])
        assert torch.equal(caches[-1], torch.cat([keys, keys[:, :, :1]], 2))
    assert torch.equal(*caches)
