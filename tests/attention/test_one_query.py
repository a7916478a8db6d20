"""A fitted folder's one-token steps give what transformers' sdpa gives, keys read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from blockwright.attention import one_query
from tests.models import random_model


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of the queries that went to PyTorch's function from the module under test."""
    seen: list[tuple[int, ...]] = []
    product = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(tuple(query.shape))
        done: Tensor = product(query, *rest, **options)
        return done

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return seen


@torch.inference_mode()
def steps(model: Any, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Logits of a prompt of 6 and of 5 single tokens after it."""
    ids = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(0))
    done = model(ids[:, :6], attention_mask=None if mask is None else mask[:, :6], **options)
    logits, cache = [done.logits], done.past_key_values
    for at in range(6, 11):
        rest = None if mask is None else mask[:, : at + 1]
        logits.append(model(ids[:, at : at + 1], attention_mask=rest, past_key_values=cache).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_those_of_sdpa(kind: str, masked: bool) -> None:
    model = random_model(kind)
    mask = torch.ones(2, 11, dtype=torch.long) if masked else None
    if mask is not None:
        mask[0, :3] = 0
    expected = steps(model, mask)
    assert one_query.use_grouped_queries(model)
    assert model.config._attn_implementation == one_query.NAME
    torch.testing.assert_close(steps(model, mask), expected, rtol=1e-5, atol=1e-5)


def test_a_static_cache_gives_the_same_logits() -> None:
    model = random_model("llama")
    expected = steps(model)
    one_query.use_grouped_queries(model)
    cache = StaticCache(config=model.config, max_cache_len=16)
    torch.testing.assert_close(steps(model, past_key_values=cache), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_single_query_goes_as_rows_of_its_heads_of_keys(
    shapes: list[tuple[int, ...]], masked: bool
) -> None:
    model = random_model("llama")
    heads, keys = model.config.num_attention_heads, model.config.num_key_value_heads
    assert heads > keys
    one_query.use_grouped_queries(model)
    padding = torch.ones(2, 11, dtype=torch.long)
    padding[0, :3] = 0
    steps(model, padding if masked else None)
    assert (2, keys, heads // keys, model.config.head_dim) in shapes
    assert not any(shape[1] == heads and shape[2] == 1 for shape in shapes)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: random_model("gpt2"), id="no shared keys"),
        pytest.param(lambda: random_model("llama", attn_implementation="eager"), id="eager"),
    ],
)
def test_other_models_stay_as_they_are(model: Any) -> None:
    made = model()
    before = made.config._attn_implementation
    assert not one_query.use_grouped_queries(made)
    assert made.config._attn_implementation == before
