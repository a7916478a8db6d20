"""Claims about LLM.int8(): normal weights, inputs with three channels around 60."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.formats import FormatLinear
from blockwright.formats.int import IntFormat
from blockwright.formats.llmint import LlmIntFormat
from blockwright.methods.quantize.llmint import Llmint
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.int8_product import integer_product, reference
from blockwright.types import Statistics
from tests.claims.ledger import Grade, claim


def layer(seed: int) -> tuple[Tensor, Tensor]:
    """W [256, 512] and x [64, 512]."""
    random = torch.Generator().manual_seed(seed)
    W, x = (torch.randn(rows, 512, generator=random) for rows in (256, 64))
    channels = torch.randperm(512, generator=random)[:3]
    x[:, channels] += 60 * torch.randn(3, generator=random).sign()
    return 0.02 * W, x.bfloat16()


def module(percent: int, W: Tensor, x: Tensor) -> FormatLinear:
    seen = Statistics(tokens=len(x), input_absmax=x.float().abs().amax(0))
    format = LlmIntFormat(percent)
    return format.pack(Llmint().solve(W, seen, format), None, torch.bfloat16)


def output_error(percent: int, seed: int) -> float:
    W, x = layer(seed)
    expected = x.float() @ W.T
    return float((module(percent, W, x)(x) - expected).norm() / expected.norm())


@claim(
    method="llmint",
    says="with huge inputs apart, 8-bit inputs and weights lose far less",
    measures="output error keeping 1% of the columns / keeping none, inputs with 3 of 512 at 60",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_decomposition_beats_plain_int8(seed: int) -> float:
    return output_error(1, seed) / output_error(0, seed)


@claim(
    method="llmint",
    says="where nothing is kept it is int8: the same weight bit for bit",
    measures="values that differ from those of int8, [256, 512]",
    grade=Grade.HARD,
    at_most=0,
)
def test_without_outliers_it_is_int8(seed: int) -> float:
    W, x = layer(seed)
    plain = Rtn().solve(W, Statistics(tokens=0), IntFormat(8, 0, symmetric=True)).weight()
    return float((module(0, W, x).dequantize() != plain).sum())


@claim(
    method="llmint",
    says="the integer product is exact",
    measures="sums that differ from 64-bit integers', codes of [64, 512] and [256, 512]",
    grade=Grade.HARD,
    at_most=0,
)
def test_the_integer_product_is_exact(seed: int) -> float:
    random = torch.Generator().manual_seed(seed)
    q, W = (
        torch.randint(-127, 128, (rows, 512), generator=random).to(torch.int8) for rows in (64, 256)
    )
    return float((integer_product(q, W) != reference(q, W)).sum())
