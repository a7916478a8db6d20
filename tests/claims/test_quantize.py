"""Claims about the quantizers.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from blockwright.methods.quantize.gptq import Gptq
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.ranges import fit_range, quantize
from blockwright.registry import format_named
from blockwright.types import GridFormat, GridSolution, LinearMethod, Solution, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, outlier_layer, synth_layer
from tests.methods.column_loop import column_loop

SEEDS = (0, 1, 2)
EVERY_GRID = [
    f"int{bits}-{group}"
    for bits in range(2, 9)
    for group in ("g32", "g64-sym", "g128", "row", "row-sym")
]


def grid_format(name: str) -> GridFormat:
    format = format_named(name)
    assert isinstance(format, GridFormat)
    return format


def solve(method: LinearMethod, layer: Layer, format: str) -> GridSolution:
    solution = method.solve(layer.W_OI, layer.statistics, grid_format(format))
    assert isinstance(solution, GridSolution)
    return solution


def decoded(solution: Solution) -> Tensor:
    return solution.weight()


def error(method: LinearMethod, layer: Layer, format: str) -> float:
    return layer.heldout_error(decoded(solve(method, layer, format)))


def against_rtn(method: LinearMethod, layer_of: Callable[[int], Layer]) -> Iterator[float]:
    """Error over that of rounding to nearest at 2, 3 and 4 bits, groups of 64, every seed."""
    for seed in SEEDS:
        layer = layer_of(seed)
        for bits in (2, 3, 4):
            format = f"int{bits}-g64"
            yield error(method, layer, format) / error(Rtn(), layer, format)


# -- card 1, round to nearest


@claim(
    method="rtn",
    paper=Rtn.paper,
    says="idempotent: rounding what was rounded changes no bit",
    measures="values that change, outlier-layer, int2 to int8, groups of 32, 64, 128, row, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_rtn_is_idempotent() -> Iterator[float]:
    for seed in SEEDS:
        layer = outlier_layer(seed)
        for format in EVERY_GRID:
            once = decoded(solve(Rtn(), layer, format))
            again = Rtn().solve(once, Statistics(tokens=0), grid_format(format))
            yield (decoded(again) != once).sum().item()


@claim(
    method="rtn",
    paper=Rtn.paper,
    says="within the range every weight moves by at most half a step",
    measures="largest |W_hat - W| / scale inside the range, outlier-layer, all grids, 3 seeds",
    grade=Grade.HARD,
    at_most=0.5 + 1e-5,  # float32: a tie may be off by its own rounding
)
def test_rtn_moves_weights_by_half_a_step() -> Iterator[float]:
    for seed in SEEDS:
        W = outlier_layer(seed).W_OI
        for format in EVERY_GRID:
            fmt = grid_format(format)
            solution = Rtn().solve(W, Statistics(tokens=0), fmt)
            assert isinstance(solution, GridSolution)
            codes, grid = solution.codes_OI, solution.grid
            low, high = (
                grid.decode(torch.full_like(codes, c), slice(None))
                for c in (0, (1 << int(format[3])) - 1)
            )
            step = (high - low) / ((1 << int(format[3])) - 1)
            inside = (low <= W) & (high >= W)
            yield ((decoded(solution) - W).abs() / step)[inside].max().item()


@claim(
    method="rtn",
    paper=Rtn.paper,
    says="16 bits recover every weight within the range that a bfloat16 scale reaches",
    measures="relative error of these, 16 bits in groups of 64 (no format stores 16), 3 seeds",
    grade=Grade.HARD,
    at_most=1e-8,
)
def test_sixteen_bits_recover_the_weight() -> Iterator[float]:
    for seed in SEEDS:
        layer = outlier_layer(seed)
        for symmetric in (False, True):
            W_OGJ = layer.W_OI.view(256, 4, 64)
            scale, zero_point = (x[..., None] for x in fit_range(W_OGJ, 16, symmetric))
            codes = quantize(W_OGJ, scale, zero_point, 1 << 16)
            inside = (codes > 0) & (codes < (1 << 16) - 1)
            W_hat_OGJ = torch.where(inside, (codes - zero_point) * scale, W_OGJ)
            yield layer.heldout_error(W_hat_OGJ.view(256, 256))


@claim(
    method="rtn",
    paper=Rtn.paper,
    says="symmetric grids cost 1.5 to 2.2 times the error at equal bits",
    measures="error of int{2,3,4}-g64-sym / that of int{2,3,4}-g64, outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_least=1.5,
    at_most=2.2,
)
def test_symmetric_grids_cost_error() -> Iterator[float]:
    for seed in SEEDS:
        layer = outlier_layer(seed)
        for bits in (2, 3, 4):
            symmetric = error(Rtn(), layer, f"int{bits}-g64-sym")
            yield symmetric / error(Rtn(), layer, f"int{bits}-g64")


@claim(
    method="rtn",
    paper=Rtn.paper,
    says="every further bit divides the error by 3.5 to 6",
    measures="error of int{b}-g64 / that of int{b+1}-g64, b = 2 to 7, outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_least=3.5,
    at_most=6,
)
def test_error_per_bit() -> Iterator[float]:
    for seed in SEEDS:
        layer = outlier_layer(seed)
        errors = [error(Rtn(), layer, f"int{bits}-g64") for bits in range(2, 9)]
        yield from (a / b for a, b in pairwise(errors))


# -- card 2, GPTQ


@claim(
    method="gptq",
    paper=Gptq.paper,
    says="compensation in natural order beats rounding to nearest",
    measures="error / that of rtn, outlier-layer, int{2,3,4}-g64, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_gptq_in_natural_order() -> Iterator[float]:
    return against_rtn(Gptq(act_order=False), outlier_layer)


@claim(
    method="gptq",
    paper=Gptq.paper,
    says="activation order does better still",
    measures="error / that of rtn, outlier-layer, int{2,3,4}-g64, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.55,
)
def test_gptq_in_activation_order() -> Iterator[float]:
    return against_rtn(Gptq(), outlier_layer)


@claim(
    method="gptq",
    paper=Gptq.paper,
    says="on correlated, badly scaled inputs activation order wins by far",
    measures="error / that of rtn, synth-layer, int{2,3,4}-g64, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.25,
)
def test_gptq_on_correlated_inputs() -> Iterator[float]:
    return against_rtn(Gptq(), synth_layer)


@pytest.mark.slow
@claim(
    method="gptq",
    paper=Gptq.paper,
    says="with H = I it is rounding to nearest, bit for bit",
    measures="values that differ, outlier-layer, all grids, both orders, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_gptq_with_the_identity_is_rtn() -> Iterator[float]:
    identity = Statistics(tokens=1, input_gram=torch.eye(256))
    for seed in SEEDS:
        W = outlier_layer(seed).W_OI
        for format in EVERY_GRID:
            nearest = decoded(Rtn().solve(W, identity, grid_format(format)))
            for act_order in (False, True):
                method = Gptq(act_order=act_order)
                found = decoded(method.solve(W, identity, grid_format(format)))
                yield (found != nearest).sum().item()


@cache
def column_loops(layer_of: Callable[[int], Layer]) -> tuple[tuple[float, float], ...]:
    """Share of equal codes, and L / L of the loop - 1, for both orders at 2, 3 and 4 bits."""
    return tuple(_column_loops(layer_of))


def _column_loops(layer_of: Callable[[int], Layer]) -> Iterator[tuple[float, float]]:
    for seed in SEEDS:
        layer = layer_of(seed)
        H = layer.statistics.input_gram
        assert H is not None
        for act_order in (False, True):
            for bits in (2, 3, 4):
                format = f"int{bits}-g64"
                fast = solve(Gptq(act_order=act_order), layer, format)
                plain = column_loop(
                    layer.W_OI, H, grid_format(format), damping=0.01, act_order=act_order
                )
                losses = [quadratic_error(decoded(x) - layer.W_OI, H) for x in (fast, plain)]
                same = (fast.codes_OI == plain.codes_OI).float().mean().item()
                yield same, losses[0] / losses[1] - 1


@pytest.mark.slow
@claim(
    method="gptq",
    paper=Gptq.paper,
    says="lazy tiles and the plain float64 column loop choose the same codes, but for ties",
    measures="share of equal codes, outlier-layer, int{2,3,4}-g64, both orders, 3 seeds",
    grade=Grade.HARD,
    at_least=0.999,
)
def test_lazy_tiles_choose_the_codes_of_the_column_loop() -> Iterator[float]:
    return (same for same, _ in column_loops(outlier_layer))


@pytest.mark.slow
@claim(
    method="gptq",
    paper=Gptq.paper,
    says="lazy tiles and the plain float64 column loop reach the same error",
    measures="L / L of the loop - 1, both layers, int{2,3,4}-g64, both orders, 3 seeds",
    grade=Grade.HARD,
    at_least=-0.01,
    at_most=0.01,
)
def test_lazy_tiles_reach_the_error_of_the_column_loop() -> Iterator[float]:
    for layer_of in (outlier_layer, synth_layer):
        yield from (excess for _, excess in column_loops(layer_of))
