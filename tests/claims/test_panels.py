"""Claims about panels and blocks: errors, the kernel, and how much of which layer goes."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.formats.panel import PanelFormat
from blockwright.methods.sparsify.icbs import Icbs
from blockwright.methods.sparsify.lpvit import Lpvit
from blockwright.methods.sparsify.magnitude import Magnitude
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.plan import solve as solve_plan
from blockwright.registry import format_named
from blockwright.types import Budget, MaskedSolution
from tests.claims.ledger import Grade, claim
from tests.claims.test_sparsify import error
from tests.layers import outlier_layer, synth_layer
from tests.plan.problems import option, problem_of

SPMM = "An Efficient Sparse Inference Software Accelerator for Transformers on CPUs, 2023"


def panel_format(name: str) -> PanelFormat:
    format = format_named(name)
    assert isinstance(format, PanelFormat)
    return format


def random_panels(
    name: str, shape: tuple[int, int], seed: int = 0
) -> tuple[torch.nn.Module, Tensor]:
    """A packed random weight, prepared, and the weight."""
    format = panel_format(name)
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = format.best_mask(W)
    values = format.values.nearest(W[mask].view(shape[0], -1))
    solution = MaskedSolution(mask_OI=mask, values=values)
    return format.pack(solution, None, torch.bfloat16).prepare(), solution.weight()


# -- card 17, the row-panel kernel


@claim(
    method="panel",
    paper=SPMM,
    says="gathered panels multiply as the dense weight does, filled-up rows add nothing",
    measures="|y - y_dense| / |y_dense|, fp32, panels of 4 to 64, ragged, 1, 2, 7, 300 tokens",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_panels_multiply_as_the_dense_weight(seed: int) -> Iterator[float]:
    for name in ("panel4-80", "panel32-80", "panel64-50", "panel16x8-50"):
        module, W = random_panels(name, (72, 160), seed)
        for tokens in (1, 2, 7, 300):
            x = torch.randn(tokens, 160, generator=torch.Generator().manual_seed(tokens))
            exact = F.linear(x.double(), W.double())
            yield float((module(x).double() - exact).norm() / exact.norm())


@claim(
    method="panel",
    paper=SPMM,
    says="the bytes are those of the kept values and one bit per unit",
    measures="|stored bytes - (2 K O + P U / 8)|, 2048 x 5632, panels of 4, 32, 32x32, 50 to 90%",
    grade=Grade.HARD,
    at_most=0,
)
def test_panel_bytes() -> Iterator[float]:
    shape = (2048, 5632)
    for (rows, columns), percent in itertools.product(((4, 1), (32, 1), (32, 32)), (50, 80, 90)):
        format = panel_format(f"panel{rows}{'' if columns == 1 else f'x{columns}'}-{percent}")
        bitmap = 2048 // rows * 5632 // columns / 8
        yield abs(format.stored_bytes(shape) - 2 * format.kept(5632) * 2048 - bitmap)


@claim(
    method="panel",
    paper=SPMM,
    says="panels of 4 by W^2 h, refitted, against magnitude",
    measures="error of wanda / that of magnitude without refit, synth-layer, panel4-80",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_refitted_panels_beat_magnitude(seed: int) -> float:
    layer = synth_layer(seed)
    return error(Wanda(), layer, "panel4-80") / error(Magnitude(), layer, "panel4-80")


@pytest.mark.slow
@claim(
    method="panel",
    paper=SPMM,
    says="panels of 32 lose more than panels of 4, and both more than single weights",
    measures="error of 32 / that of 4, of 4 / that of sparse80, sparsegpt, both layers",
    grade=Grade.FIRM,
    at_least=1.0,
)
def test_larger_panels_lose_more(seed: int) -> Iterator[float]:
    for layer in (synth_layer(seed), outlier_layer(seed)):
        names = ("panel32-80", "panel4-80", "sparse80")
        coarse, fine, single = (error(Sparsegpt(), layer, name) for name in names)
        yield coarse / fine
        yield fine / single


@pytest.mark.slow
@claim(
    method="panel",
    paper=SPMM,
    says="swapped whole, inputs of panels lose less, too",
    measures="error of icbs / that of wanda, both refitted, both layers, panel32-80",
    grade=Grade.FIRM,
    at_most=1.0,
)
def test_swaps_help_panels(seed: int) -> Iterator[float]:
    for layer in (synth_layer(seed), outlier_layer(seed)):
        yield error(Icbs(), layer, "panel32-80") / error(Wanda(), layer, "panel32-80")


def least_times(calls: Sequence[Sequence[Callable[[], Tensor]]], rounds: int) -> list[float]:
    """Least over rounds of the median over copies, interleaved, in nanoseconds."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        spent: list[list[int]] = [[] for _ in calls]
        for copy, (place, each) in itertools.product(range(len(calls[0])), enumerate(calls)):
            began = time.perf_counter_ns()
            each[copy]()
            spent[place].append(time.perf_counter_ns() - began)
        best = [min(a, statistics.median(b)) for a, b in zip(best, spent, strict=True)]
    return best


@pytest.mark.slow
@claim(
    method="panel",
    paper=SPMM,
    says="on a CPU the kernel beats the dense product from 80% on, for one token and for 32",
    measures="time / that of dense bfloat16, one thread, 2048 x 5632 and back, panel32-80, 1, 32",
    grade=Grade.SOFT,
    at_most=0.8,
)
def test_panels_are_faster_than_dense() -> Iterator[float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for shape in ((2048, 5632), (5632, 2048)):
            packed = [random_panels("panel32-80", shape, seed)[0] for seed in range(3)]
            dense = [torch.randn(shape).bfloat16() for _ in packed]
            for tokens in (1, 32):
                x = torch.randn(tokens, shape[1]).bfloat16()
                sparse_calls = [lambda m=m, x=x: m(x) for m in packed]
                dense_calls = [lambda W=W, x=x: F.linear(x, W) for W in dense]
                with torch.inference_mode():
                    mine, rival = least_times([sparse_calls, dense_calls], rounds=8)
                yield mine / rival
    finally:
        torch.set_num_threads(threads)


# -- card 7, LPViT


@claim(
    method="lpvit",
    says="blocks by the second-order model lose less than the largest ones",
    measures="error / that of magnitude, neither refitted, synth-layer, panel16x16-50",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_blocks_by_the_model_beat_magnitude(seed: int) -> float:
    layer, name = synth_layer(seed), "panel16x16-50"
    return error(Lpvit(refit=False), layer, name) / error(Magnitude(), layer, name)


@claim(
    method="lpvit",
    says="a refit makes up for most of what blocks cost",
    measures="error / that without refit, synth-layer, panel16x16-50",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_the_refit_rescues_blocks(seed: int) -> float:
    layer, name = synth_layer(seed), "panel16x16-50"
    return error(Lpvit(), layer, name) / error(Lpvit(refit=False), layer, name)


Curve = list[tuple[int, float]]
"""(cost, distortion) of a layer's levels, dearest first; convex."""


def convex_curves(seed: int, layers: int, levels: int) -> list[Curve]:
    draw = random.Random(seed)
    curves = []
    for _ in range(layers):
        slopes = sorted(draw.lognormvariate(0, 2) for _ in range(levels - 1))
        steps = [draw.randint(5, 40) for _ in slopes]
        curve: Curve = [(10 + sum(steps), 0.0)]
        for step, slope in zip(steps, slopes, strict=True):
            curve.append((curve[-1][0] - step, curve[-1][1] + step * slope))
        curves.append(curve)
    return curves


def at_slope(curves: Sequence[Curve], mu: float) -> tuple[int, float]:
    """Cost and distortion where every layer minimises D + mu C."""
    chosen = [min(curve, key=lambda level: level[1] + mu * level[0]) for curve in curves]
    return sum(cost for cost, _ in chosen), sum(loss for _, loss in chosen)


@claim(
    method="lpvit",
    says="at one slope no other allocation of at most its cost loses less, and the plan finds it",
    measures="D(one slope) - D(best of all), D(plan) - D(one slope), 4 convex curves of 6 levels",
    grade=Grade.HARD,
    at_most=1e-9,
)
def test_one_slope_is_optimal_and_the_plan_is_no_worse(seed: int) -> Iterator[float]:
    curves = convex_curves(seed, 4, 6)
    options = [
        option(f"s{layer}", f"sparse{10 * level}" if level else "keep", cost, loss)
        for layer, curve in enumerate(curves)
        for level, (cost, loss) in enumerate(curve)
    ]
    problem = problem_of(options, fixed_bytes=0)
    for mu in (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0):
        cost, loss = at_slope(curves, mu)
        if cost == problem.original_bytes:
            continue  # nothing is asked for
        allocations = itertools.product(*curves)
        best = min(sum(d for _, d in a) for a in allocations if sum(c for c, _ in a) <= cost)
        yield loss - best
        yield solve_plan(problem, Budget(size_bytes=cost)).loss - loss
