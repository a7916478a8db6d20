"""Claims of methods that make parts narrower."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.anatomy import install_narrow, narrow_shapes, slices_of
from blockwright.anatomy.sites import block_sites
from blockwright.cli.demo import bundled_model
from blockwright.formats.narrow import NarrowFormat
from blockwright.methods.width.cfsp import Cfsp
from blockwright.methods.width.matformer import ModelPrefix
from blockwright.methods.width.modegpt import ModeGpt
from blockwright.methods.width.puzzle import Puzzle
from blockwright.numerics.attention_pairs import value_output
from blockwright.numerics.losses import quadratic_error
from blockwright.texts import bundled_documents, load_tokenizer, tokenize
from blockwright.types import Channels, Statistic, Statistics, WidthMethod
from tests.claims.ledger import Grade, claim
from tests.layers import synth_layer
from tests.models import random_model

LENGTH = 512
Narrowed = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]
"""Last matrix, the Gram of its inputs and the first matrices -> the last one with some columns at
zero.
"""


def narrowed(method: WidthMethod, share: float) -> Narrowed:
    def narrow(W_OI: Tensor, C_II: Tensor, readers: Sequence[Tensor]) -> Tensor:
        channels, seen = int(share * W_OI.shape[1]), Statistics(tokens=1, input_gram=C_II)
        kept_K, W_OK = method.narrow(W_OI, seen, channels, readers=readers)
        return torch.zeros_like(W_OI).index_copy_(1, kept_K, W_OK)

    return narrow


def magnitude(W_OI: Tensor, C_II: Tensor, readers: Sequence[Tensor]) -> Tensor:
    """The three quarters of the columns of largest norm, as they are."""
    kept = W_OI.norm(dim=0).topk(3 * W_OI.shape[1] // 4).indices
    return torch.zeros_like(W_OI).index_copy_(1, kept, W_OI[:, kept])


def error(seed: int, narrow: Narrowed) -> float:
    layer = synth_layer(seed)
    W, C = layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM)
    return quadratic_error(narrow(W, C, ()) - W, C)


@claim(
    method="modegpt",
    says="with all channels kept nothing changes",
    measures="largest change of a weight, synth-layer",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_no_channel_less_is_the_same(seed: int) -> float:
    layer = synth_layer(seed)
    W, C = layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM)
    return float((narrowed(ModeGpt(), 1.0)(W, C, ()) - W).abs().max())


@claim(
    method="modegpt",
    says="channels by leverage and a refit beat channels by norm without one",
    measures="squared error / that of score=norm,refit=false, half of the channels, synth-layer",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_the_refit_makes_up_for_half_of_the_channels(seed: int) -> float:
    plain = narrowed(ModeGpt(score="norm", refit=False), 0.5)
    return error(seed, narrowed(ModeGpt(), 0.5)) / error(seed, plain)


@claim(
    method="narrow",
    paper="none; smaller matrices",
    says="smaller matrices compute what whole ones do with the other channels at zero",
    measures="largest difference of an FFN's outputs, relative, random Llama, p25 to p75",
    grade=Grade.HARD,
    at_most=1e-5,
)
@torch.no_grad()
def test_smaller_matrices_are_the_whole_ones_with_zeros() -> Iterator[float]:
    model = random_model("llama")
    sites = block_sites(model.model.layers[1], "model.layers.1", 1)
    members = [site for site in sites if ".mlp." in site.id]
    readers = {site.id: (1, False) for site in members[:2]}
    channels = Channels(writer=members[2].id, width=96, readers=readers)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 64, generator=draw)
    for percent in (25, 50, 75):
        kept = (
            torch.randperm(96, generator=draw)[: NarrowFormat(percent=percent).kept(96)]
            .sort()
            .values.tolist()
        )
        smaller, zeroed = copy.deepcopy(model), copy.deepcopy(model)
        install_narrow(smaller, narrow_shapes(members, channels, len(kept)))
        for name, slice in slices_of(members, channels, kept).items():
            whole = model.get_parameter(name)
            smaller.get_parameter(name).copy_(slice.of(whole))
            zeroed.get_parameter(name).copy_(slice.zeroed(whole))
        given, expected = (each.model.layers[1].mlp(x) for each in (smaller, zeroed))
        yield float((given - expected).abs().max() / expected.abs().max())


@functools.cache
def original() -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()


def ffns() -> list[Any]:
    return [block.mlp.down_proj for block in original().model.layers]


def rows(split: str, tokens: int, seed: int) -> Tensor:
    documents, tokenizer = bundled_documents(split), load_tokenizer(bundled_model())
    return tokenize(documents, tokenizer, LENGTH, tokens, seed, name=f"{split} text").ids


@functools.cache
@torch.no_grad()
def channel_grams(seed: int) -> list[Tensor]:
    """E[a a^T] of every block's channels on 16k calibration tokens."""
    found: dict[int, Tensor] = {}

    def add(block: int, inputs: tuple[Tensor]) -> None:
        a_TI = inputs[0].flatten(0, -2)
        found[block] = found.get(block, torch.zeros(())) + a_TI.T @ a_TI

    hooks = [
        module.register_forward_pre_hook(lambda _m, inputs, block=block: add(block, inputs))
        for block, module in enumerate(ffns())
    ]
    ids = rows("calibration", 16_384, seed)
    for some in ids.split(4):
        original()(some)
    for hook in hooks:
        hook.remove()
    return [found[block] / ids.numel() for block in range(len(found))]


@torch.no_grad()
def heldout_kl(seed: int, narrow: Narrowed) -> float:
    """KL of the bundled model with all its FFNs narrowed, nats per token."""
    ids, grams = rows("heldout", 8_192, seed), channel_grams(seed)
    whole = original()(ids).logits.log_softmax(-1)
    weights = [module.weight.clone() for module in ffns()]
    for block, C_II in zip(original().model.layers, grams, strict=True):
        readers = [block.mlp.gate_proj.weight, block.mlp.up_proj.weight]
        block.mlp.down_proj.weight.copy_(narrow(block.mlp.down_proj.weight, C_II, readers))
    less = original()(ids).logits.log_softmax(-1)
    for module, weight in zip(ffns(), weights, strict=True):
        module.weight.copy_(weight)
    return float((whole.exp() * (whole - less)).sum(-1).mean())


@pytest.mark.slow
@claim(
    method="modegpt",
    says="a quarter of the channels of all FFNs goes at a fraction of what magnitude pruning costs",
    measures="held-out KL / with the columns of largest norm, bundled model, 8k held-out tokens",
    grade=Grade.SOFT,
    at_most=0.5,
)
def test_a_quarter_less_than_magnitude(seed: int) -> float:
    return heldout_kl(seed, narrowed(ModeGpt(), 0.75)) / heldout_kl(seed, magnitude)


@pytest.mark.slow
@claim(
    method="modegpt",
    says="leverage chooses better channels than norms do, both refitted",
    measures="held-out KL / with score=norm, a quarter less, bundled model, 8k held-out tokens",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_leverage_chooses_better_channels(seed: int) -> float:
    by_norm = narrowed(ModeGpt(score="norm"), 0.75)
    return heldout_kl(seed, narrowed(ModeGpt(), 0.75)) / heldout_kl(seed, by_norm)


@pytest.mark.slow
@claim(
    method="cfsp",
    says="a quarter of the channels of all FFNs goes at less than what magnitude pruning costs",
    measures="held-out KL / with the columns of largest norm, bundled model, 8k held-out tokens",
    grade=Grade.SOFT,
    at_most=0.6,
)
def test_cfsp_is_better_than_magnitude(seed: int) -> float:
    return heldout_kl(seed, narrowed(Cfsp(), 0.75)) / heldout_kl(seed, magnitude)


@pytest.mark.slow
@claim(
    method="modegpt",
    says="it loses no more than CFSP without a refit",
    measures="held-out KL / that of cfsp, a quarter less, bundled model, 8k held-out tokens",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_modegpt_is_better_than_cfsp(seed: int) -> float:
    return heldout_kl(seed, narrowed(ModeGpt(), 0.75)) / heldout_kl(seed, narrowed(Cfsp(), 0.75))


# -- dimensions inside the heads of attention


def value_pair(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """C of the inputs, values [32, 256] and outputs [256, 32] of one head, synth-layer."""
    layer = synth_layer(seed)
    draw = torch.Generator().manual_seed(seed)
    Wo_OD = torch.randn(256, 32, generator=draw) / 32**0.5
    return layer.statistics.need(Statistic.INPUT_GRAM), layer.W_OI[:32], Wo_OD


def pair_error(seed: int, product: Tensor) -> float:
    """Squared error of what a head gives for one token."""
    C, Wv, Wo = value_pair(seed)
    return quadratic_error(product.float() - Wo @ Wv, C)


def by_pair(seed: int, rank: int) -> tuple[Tensor, float]:
    C, Wv, Wo = value_pair(seed)
    less_v, less_o, S = value_output(C, Wv, Wo, rank)
    return less_o @ less_v, float(S[rank:].square().sum())


def plain(W: Tensor, rank: int) -> Tensor:
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    product: Tensor = U[:, :rank] * S[:rank] @ Vt[:rank]
    return product


@pytest.mark.slow
@claim(
    method="modegpt",
    says="of values and outputs nothing is lost but the singular values that are dropped",
    measures="squared error / their squares - 1, a head of 32 at 8, 16, 24, synth-layer",
    grade=Grade.HARD,
    at_least=-1e-4,
    at_most=1e-4,
)
def test_values_and_outputs_lose_what_is_dropped(seed: int) -> Iterator[float]:
    for rank in (8, 16, 24):
        product, dropped = by_pair(seed, rank)
        yield pair_error(seed, product) / dropped - 1


@pytest.mark.slow
@claim(
    method="modegpt",
    says="the pair is worth more than its matrices alone, or its product without the inputs",
    measures="squared error / by SVD of the values, and of the product, half of 32, synth-layer",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_the_pair_beats_its_parts(seed: int) -> Iterator[float]:
    _, Wv, Wo = value_pair(seed)
    error = pair_error(seed, by_pair(seed, 16)[0])
    yield error / pair_error(seed, Wo @ plain(Wv, 16))
    yield error / pair_error(seed, plain(Wo @ Wv, 16))


@claim(
    method="matformer",
    says="children are nested: a smaller one is the beginning of a larger one",
    measures="largest difference of a weight, synth-layer, an eighth to all of its channels",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_children_are_nested(seed: int) -> Iterator[float]:
    W, seen = synth_layer(seed).W_OI, synth_layer(seed).statistics
    largest = ModelPrefix().narrow(W, seen, 256)[1]
    for channels in (32, 64, 128, 256):
        kept, less = ModelPrefix().narrow(W, seen, channels)
        yield float((less - largest[:, :channels]).abs().max())
        yield float((kept - torch.arange(channels)).abs().max())


@pytest.mark.slow
@claim(
    method="puzzle",
    says="channels removed one at a time, the others fitted behind each, beat independent scores",
    measures="held-out KL / that of modegpt by leverage and by norm, a quarter less, bundled model,"
    " 8k held-out tokens; nothing distilled",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_elimination_beats_independent_scores(seed: int) -> Iterator[float]:
    mine = heldout_kl(seed, narrowed(Puzzle(), 0.75))
    for other in (ModeGpt(), ModeGpt(score="norm")):
        yield mine / heldout_kl(seed, narrowed(other, 0.75))


@claim(
    method="puzzle",
    says="without a fit, removing one at a time misses no more than independent scores",
    measures="squared error / that of score=norm without refit, half of the channels, synth-layer",
    grade=Grade.FIRM,
    at_most=1.0,
)
def test_elimination_misses_no_more(seed: int) -> float:
    plain = narrowed(ModeGpt(score="norm", refit=False), 0.5)
    return error(seed, narrowed(Puzzle(refit=False), 0.5)) / error(seed, plain)
