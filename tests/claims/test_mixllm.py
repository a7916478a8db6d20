"""Claims about rows of two widths: six linears of 128 rows whose gradients differ by orders of
magnitude.  Predicted loss is half the sum over rows of G_r times the squared output error.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from blockwright.formats.mix import MixFormat
from blockwright.methods.quantize.mixllm import Mixllm
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.losses import row_errors
from blockwright.types import GridFormat, Statistic, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, outlier_layer

FORMAT = MixFormat(10, 128)
PLAIN = Mixllm(compensate=False)


def linears(seed: int) -> Iterator[tuple[Layer, Statistics]]:
    """Row scales exp(1.2 normal), layer scales exp(normal)."""
    random = torch.Generator().manual_seed(seed)
    for index in range(6):
        layer = outlier_layer(6 * seed + index, out_features=128, in_features=128, tokens=512)
        rows = torch.randn(128, generator=random).mul(1.2).exp()
        G_O = (rows * torch.randn(1, generator=random).exp()).square()
        gram = layer.statistics.need(Statistic.INPUT_GRAM)
        yield layer, Statistics(tokens=512, input_gram=gram, output_gradient=G_O)


def losses(layer: Layer, seen: Statistics, W_hat: Tensor) -> Tensor:
    """Of every row."""
    errors_O = row_errors(W_hat - layer.W_OI, seen.need(Statistic.INPUT_GRAM))
    return seen.need(Statistic.OUTPUT_GRADIENT) * errors_O / 2


def nearest(format: GridFormat, W_OI: Tensor) -> Tensor:
    """Rounded to nearest, ranges not searched."""
    return Rtn().solve(W_OI, Statistics(tokens=0), format).weight()


@claim(
    method="mixllm",
    says="the tenth of the rows that the loss feels most carries most of it",
    measures="predicted loss of mix-p10-g128 / that of a random tenth in 8 bits, 6 linears",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_felt_rows_beat_random_rows(seed: int) -> float:
    random = torch.Generator().manual_seed(seed)
    found = by_chance = 0.0
    for layer, seen in linears(seed):
        narrow = losses(layer, seen, nearest(FORMAT.narrow, layer.W_OI))
        wide = losses(layer, seen, nearest(FORMAT.wide, layer.W_OI))
        rows = torch.randperm(128, generator=random)[: FORMAT.wide_rows(128)]
        by_chance += float(narrow.sum() - (narrow - wide)[rows].sum())
        found += float(losses(layer, seen, PLAIN.solve(layer.W_OI, seen, FORMAT).weight()).sum())
    return found / by_chance


@claim(
    method="mixllm",
    says="ranking the rows of all linears in one list is better still: the plan's part",
    measures="predicted loss of the best tenth of all rows / that of mix-p10 in each, 6 linears",
    grade=Grade.FIRM,
    at_most=1,
)
def test_one_list_beats_a_tenth_of_each(seed: int) -> float:
    gains, total, each = [], 0.0, 0.0
    for layer, seen in linears(seed):
        narrow = losses(layer, seen, nearest(FORMAT.narrow, layer.W_OI))
        gains.append(narrow - losses(layer, seen, nearest(FORMAT.wide, layer.W_OI)))
        total += float(narrow.sum())
        each += float(losses(layer, seen, PLAIN.solve(layer.W_OI, seen, FORMAT).weight()).sum())
    best = torch.cat(gains).topk(6 * FORMAT.wide_rows(128)).values
    return (total - float(best.sum())) / each


@claim(
    method="mixllm",
    says="compensated rows of two widths lose less than rounded ones",
    measures="predicted loss / that of compensate=false, mix-p10-g128, 6 linears",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_compensation_lowers_the_loss(seed: int) -> float:
    totals = [0.0, 0.0]
    for layer, seen in linears(seed):
        for place, method in enumerate((Mixllm(), PLAIN)):
            W_hat = method.solve(layer.W_OI, seen, FORMAT).weight()
            totals[place] += float(losses(layer, seen, W_hat).sum())
    return totals[0] / totals[1]


@claim(
    method="mix",
    paper="Zheng et al., MixLLM, 2024",
    says="every row is stored once, in one width, and decodes to what was solved",
    measures="values that differ, bytes - the declared ones, wide rows - a tenth, [128, 128]",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_mix_stores_what_was_solved(seed: int) -> Iterator[float]:
    for layer, seen in linears(seed):
        solution = Mixllm().solve(layer.W_OI, seen, FORMAT)
        packed = FORMAT.pack(solution, None, torch.bfloat16)
        yield float((packed.dequantize() != solution.weight()).sum())
        saved = sum(tensor.nbytes for tensor in packed.stored_tensors().values())
        yield saved - FORMAT.stored_bytes((128, 128))
        yield int(solution.is_wide_O.sum()) - 13
