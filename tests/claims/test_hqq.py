"""Claims about half-quadratic quantization and its format, on the weights of outlier-layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from blockwright.formats.affine import AffineFormat
from blockwright.methods.quantize.hqq import Hqq
from blockwright.methods.quantize.rtn import Rtn
from blockwright.registry import format_named
from blockwright.types import LinearMethod, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import outlier_layer

BITS = (2, 3, 4, 5)
"""Above, the rounding of the offset to bfloat16 takes part of the gain."""
UNSEARCHED = Hqq(search="none")


def difference(method: LinearMethod, W: Tensor, format: str) -> Tensor:
    """W_hat - W."""
    return method.solve(W, Statistics(tokens=0), format_named(format)).weight() - W


def mean_error(method: LinearMethod, W: Tensor, format: str) -> float:
    return float(difference(method, W, format).abs().double().mean())


@claim(
    method="hqq",
    says="shifting the levels beats rounding to nearest on the same ranges",
    measures="mean |W_hat - W| / that of rtn, affine{2..5}-g64, search=none",
    grade=Grade.FIRM,
    at_most=0.985,
)
def test_hqq_beats_rounding_on_the_same_ranges(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for bits in BITS:
        format = f"affine{bits}-g64"
        yield mean_error(UNSEARCHED, W, format) / mean_error(Rtn(), W, format)


@claim(
    method="hqq",
    says="it lowers the squared error, too",
    measures="mean (W_hat - W)^2 / that of rtn, affine{2..5}-g64, search=none",
    grade=Grade.FIRM,
    at_most=0.96,
)
def test_hqq_lowers_the_squared_error(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for bits in BITS:
        squares = [
            difference(method, W, f"affine{bits}-g64").double().square().mean()
            for method in (UNSEARCHED, Rtn())
        ]
        yield float(squares[0] / squares[1])


@claim(
    method="hqq",
    says="it beats rounding on integer zero points, in part by its real-valued start alone",
    measures="mean |W_hat - W| / that of rtn on int{2..5}-g64, search=none",
    grade=Grade.FIRM,
    at_most=0.98,
)
def test_hqq_beats_integer_zero_points(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for bits in BITS:
        nearest = mean_error(Rtn(), W, f"int{bits}-g64")
        yield mean_error(UNSEARCHED, W, f"affine{bits}-g64") / nearest


@claim(
    method="hqq",
    says="no group ends worse than it began",
    measures="largest mean |W_hat - W| of a group / that of rtn - 1, affine{1..8}-g64",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_hqq_never_ends_worse(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for bits in range(1, 9):
        after, before = (
            difference(method, W, f"affine{bits}-g64").abs().view(256, 4, 64).mean(-1)
            for method in (UNSEARCHED, Rtn())
        )
        yield float((after / before).max()) - 1


@claim(
    method="hqq",
    says="errors in steps of the grid make it scale with the weight",
    measures="mean |W_hat - W| of k W / k times that of W - 1, k = 8 and 1/64, affine3-g64",
    grade=Grade.HARD,
    at_least=-1e-6,
    at_most=1e-6,
)
def test_hqq_scales_with_the_weight(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for k in (8.0, 1 / 64):
        scaled = mean_error(Hqq(), k * W, "affine3-g64")
        yield scaled / (k * mean_error(Hqq(), W, "affine3-g64")) - 1


@claim(
    method="affine",
    says="b bits per weight, and 32 per group; the int4 kernel multiplies exactly what is stored",
    measures="stored bits - the formula's, and values that a kernel's layout changes, 1 to 8 bits",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_affine_stores_what_was_solved(seed: int) -> Iterator[float]:
    W = outlier_layer(seed).W_OI
    for bits in range(1, 9):
        format = AffineFormat(bits, 64)
        solution = Hqq().solve(W, Statistics(tokens=0), format)
        packed = format.pack(solution, None, torch.bfloat16)
        yield 8 * packed.stored_bytes - (bits + 32 / 64) * W.numel()
        packed.prepare()
        yield float((packed.dequantize() != solution.weight()).sum())
