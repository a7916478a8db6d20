"""Claims about low rank plus quantized, on outlier-layer with eight planted directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from blockwright.methods.quantize.lqlora import Lqlora, nearest_product
from blockwright.registry import format_named
from blockwright.types import GridSumFormat, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, outlier_layer

NOTHING = Statistics(tokens=0)
PLAIN = Lqlora(metric="weight")


def planted(seed: int) -> Layer:
    layer = outlier_layer(seed)
    random = torch.Generator().manual_seed(seed + 100)
    left, right = (torch.randn(shape, generator=random) for shape in ((256, 8), (8, 256)))
    return replace(layer, W_OI=layer.W_OI + 0.7 * layer.W_OI.std() * left @ right)


def format_of(bits: int) -> GridSumFormat:
    format = format_named(f"nf{bits}-g64&rank-r16")
    assert isinstance(format, GridSumFormat)
    return format


@cache
def plain(seed: int, bits: int) -> Tensor:
    """W_hat of the planted layer, metric=weight."""
    return PLAIN.solve(planted(seed).W_OI, NOTHING, format_of(bits)).weight()


def weight_error(W_hat_OI: Tensor, W_OI: Tensor) -> float:
    """|W_hat - W|"""
    return float((W_hat_OI - W_OI).norm())


@pytest.mark.slow
@claim(
    method="lqlora",
    says="where weights have large directions, few bits and a product lose less than the bits",
    measures="|W_hat - W| / that of nf{2,3}-g64 alone, rank 16, metric=weight, planted directions",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_planted_directions_are_found(seed: int) -> Iterator[float]:
    W = planted(seed).W_OI
    for bits in (2, 3):
        alone = weight_error(format_of(bits).base.nearest(W).weight(), W)
        yield weight_error(plain(seed, bits), W) / alone


@pytest.mark.slow
@claim(
    method="lqlora",
    says="turns go on lowering the error after the first",
    measures="|W_hat - W| / that after one turn, nf{2,3}-g64&rank-r16, metric=weight",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_turns_lower_the_error(seed: int) -> Iterator[float]:
    W = planted(seed).W_OI
    once = Lqlora(metric="weight", iterations=1)
    for bits in (2, 3):
        first = weight_error(once.solve(W, NOTHING, format_of(bits)).weight(), W)
        yield weight_error(plain(seed, bits), W) / first


@pytest.mark.slow
@claim(
    method="lqlora",
    says="it beats rounding first and a product of the same rank for what was missed",
    measures="|W_hat - W| / that of nf{2,3}-g64 and the SVD of its error, metric=weight",
    grade=Grade.FIRM,
    at_most=0.75,
)
def test_it_beats_a_product_of_the_rounding_error(seed: int) -> Iterator[float]:
    W = planted(seed).W_OI
    for bits in (2, 3):
        format = format_of(bits)
        Q = format.base.nearest(W).weight()
        product = nearest_product(W - Q, torch.ones(256), torch.eye(256), format)
        afterwards = weight_error(Q + product.weight(), W)
        yield weight_error(plain(seed, bits), W) / afterwards


@pytest.mark.slow
@claim(
    method="lqlora",
    says="a product in the metric of the inputs is worth far more at the output",
    measures="held-out output error / that of metric=weight, nf3-g64&rank-r16, outlier-layer",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_the_inputs_metric_lowers_the_output_error(seed: int) -> float:
    layer = outlier_layer(seed)
    found = Lqlora().solve(layer.W_OI, layer.statistics, format_of(3)).weight()
    blind = PLAIN.solve(layer.W_OI, NOTHING, format_of(3)).weight()
    return layer.heldout_error(found) / layer.heldout_error(blind)


@claim(
    method="sum",
    says="stored bytes are those of both parts, and what is stored is what was solved",
    measures="bytes - those of the parts, values that differ, nf3-g64&rank-r16 [256, 256]",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_a_sum_stores_both(seed: int) -> Iterator[float]:
    layer, format = outlier_layer(seed), format_of(3)
    solution = Lqlora(iterations=2).solve(layer.W_OI, layer.statistics, format)
    packed = format.pack(solution, None, torch.bfloat16)
    parts = format.base.stored_bytes((256, 256)) + format.plus.stored_bytes((256, 256))
    yield packed.stored_bytes - parts
    yield float((packed.dequantize() != solution.weight()).sum())
