"""Claims about KV caches.  Keys [T, D] of one head; errors of logits q k^T."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockwright.cli.demo import bundled_model
from blockwright.evaluate import FinalHidden, measure, run_to_file
from blockwright.kvcache.pages import KINDS
from blockwright.numerics.block_floating_point import order_by_norm
from blockwright.pipeline.proving import open_fitted
from blockwright.stream import Inputs
from blockwright.texts import bundled_documents, load_tokenizer, tokenize
from blockwright.types import CacheFormat
from tests.claims.ledger import Grade, claim

K_SORT = "Trukhanov and Soloveychik, Accurate Block Quantization in LLMs with Outliers, 2024"
KIVI = "Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, ICML 2024"
TOKENS, CHANNELS, OUTLIERS = 512, 128, 6
KEYS = f"keys [{TOKENS}, {CHANNELS}], {OUTLIERS} channels, spread over the head, 12 times as large"


def keys_and_queries(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """K [T, D], Q [64, D], and which channels are ordinary."""
    draw = torch.Generator().manual_seed(seed)
    stretch = CHANNELS // OUTLIERS
    large = torch.arange(OUTLIERS) * stretch + torch.randint(stretch, (OUTLIERS,), generator=draw)
    keys = torch.randn(TOKENS, CHANNELS, generator=draw)
    keys[:, large] *= 12
    ordinary = torch.ones(CHANNELS, dtype=torch.bool)
    ordinary[large] = False
    return keys, torch.randn(64, CHANNELS, generator=draw), ordinary


def stored(keys: Tensor, name: str) -> Tensor:
    """Keys as a cache of this format reads them back."""
    format = CacheFormat.parse(name)
    states = keys[None, None]
    pages = KINDS[format.kind](format, states, keys=True)
    pages.append(states)
    found = torch.empty_like(states)
    pages.read_into(found)
    return found[0, 0]


def logit_error(keys: Tensor, queries: Tensor, name: str) -> float:
    exact = queries @ keys.T
    return float((queries @ stored(keys, name).T - exact).norm() / exact.norm())


@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="an order that keys and queries share changes no logit",
    measures=f"relative difference of logits in fp64, {KEYS}",
    grade=Grade.HARD,
    at_most=1e-12,
)
def test_an_order_changes_no_logit(seed: int) -> float:
    keys, queries, _ = (x.double() for x in keys_and_queries(seed))
    order = order_by_norm(keys.norm(dim=0))
    exact = queries @ keys.T
    return float((queries[:, order] @ keys[:, order].T - exact).norm() / exact.norm())


@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="where one exponent serves the whole head, sorting changes nothing",
    measures=f"largest difference between sorted and unsorted keys read back, bfp4-b128, {KEYS}",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_over_a_whole_head_sorting_changes_nothing(seed: int) -> float:
    keys, _, _ = keys_and_queries(seed)
    names = ("bfp4-b128", "bfp4-b128@sort=false")
    found = [stored(keys, name) for name in names]
    return float((found[0] - found[1]).abs().max())


@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="sorted channels lower the error of logits in blocks of 64",
    measures=f"logit error / unsorted, bfp4-b64 in the cache, {KEYS}",
    grade=Grade.FIRM,
    at_most=0.92,
)
def test_sorting_helps_in_blocks_of_64(seed: int) -> float:
    keys, queries, _ = keys_and_queries(seed)
    unsorted = logit_error(keys, queries, "bfp4-b64@sort=false")
    return logit_error(keys, queries, "bfp4-b64") / unsorted


@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="and more so in blocks of 32",
    measures=f"logit error / unsorted, bfp4-b32 in the cache, {KEYS}",
    grade=Grade.FIRM,
    at_most=0.88,
)
def test_sorting_helps_in_blocks_of_32(seed: int) -> float:
    keys, queries, _ = keys_and_queries(seed)
    unsorted = logit_error(keys, queries, "bfp4-b32@sort=false")
    return logit_error(keys, queries, "bfp4-b32") / unsorted


@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="ordinary channels no longer pay for large ones",
    measures=f"error on ordinary channels / unsorted, blocks of 64 and 32, {KEYS}",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_ordinary_channels_gain(seed: int) -> Iterator[float]:
    keys, _, ordinary = keys_and_queries(seed)
    for block in (64, 32):
        errors = [
            float((stored(keys, f"bfp4-b{block}{option}") - keys)[:, ordinary].norm())
            for option in ("", "@sort=false")
        ]
        yield errors[0] / errors[1]


@claim(
    method="kivi",
    family="cache",
    paper=KIVI,
    says="keys with large channels want a range per channel, not per token",
    measures=f"logit error / that of ranges per token in groups of 64, int4, {KEYS}",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_keys_want_ranges_per_channel(seed: int) -> float:
    keys, queries, _ = keys_and_queries(seed)
    return logit_error(keys, queries, "int4") / logit_error(keys, queries, "int4@keys=token")


def on_bundled_model(work: Path, seed: int, *caches: str) -> Iterator[tuple[float, float]]:
    """Perplexity against an ordinary cache's, and KL, of each cache."""
    model = bundled_model()
    documents = bundled_documents("heldout")
    tokens = tokenize(documents, load_tokenizer(model), 2048, 8192, seed, name="held-out text")
    inputs = Inputs.of_tokens(tokens.ids)

    def read_with(kv: str) -> FinalHidden:
        return run_to_file(open_fitted(model, kv=kv), inputs, work / f"{seed}-{kv}.bin")

    ordinary = read_with("keep")
    perplexity = measure(ordinary).perplexity or 1.0
    for name in caches:
        quality = measure(read_with(name), ordinary)
        yield (quality.perplexity or 0.0) / perplexity, quality.kl_divergence or 0.0


BUNDLED = "bundled model, 4 held-out sequences of 2,048 tokens, every token decoded"


@pytest.mark.slow
@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="keys (here values too) in 4-bit block floating point cost a trained model under 1%",
    measures=f"perplexity / with an ordinary cache, bfp4, {BUNDLED}",
    grade=Grade.SOFT,
    at_most=1.01,
)
def test_a_trained_model_takes_block_floating_point(seed: int, tmp_path: Path) -> float:
    ((ratio, _),) = on_bundled_model(tmp_path, seed, "bfp4")
    return ratio


@pytest.mark.slow
@claim(
    method="k-sort",
    family="cache",
    paper=K_SORT,
    says="sorting does a trained model no harm",
    measures=f"KL / unsorted, bfp4, {BUNDLED}",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_sorting_helps_a_trained_model(seed: int, tmp_path: Path) -> float:
    found = on_bundled_model(tmp_path, seed, "bfp4", "bfp4@sort=false")
    (_, kl), (_, unsorted) = found
    return kl / unsorted


@pytest.mark.slow
@claim(
    method="kivi",
    family="cache",
    paper=KIVI,
    says="a trained model's keys, too, want ranges per channel",
    measures=f"KL / that of keys per token, int4, {BUNDLED}",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_a_trained_models_keys_want_ranges_per_channel(seed: int, tmp_path: Path) -> float:
    found = on_bundled_model(tmp_path, seed, "int4", "int4@keys=token")
    (_, kl), (_, per_token) = found
    return kl / per_token
