"""Claims about HAWQ-V3: rescaling by integers, and its cost of a choice beside ours."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from blockwright.capture import forward_sweep
from blockwright.cli.demo import bundled_model
from blockwright.formats.dyadic import DyadicIntFormat
from blockwright.formats.llmint import LlmIntFormat
from blockwright.methods.quantize.hawq import Hawq
from blockwright.methods.quantize.llmint import Llmint
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.dyadic import dyadic, requantize
from blockwright.numerics.hessian_trace import hutchinson_trace, moment_trace, trace_cost
from blockwright.numerics.int8_product import multiplies_integers
from blockwright.pipeline.building import build_library
from blockwright.pipeline.curvature import output_moments
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import solve
from blockwright.progress import SilentProgress
from blockwright.registry import format_named
from blockwright.stream import weight_of
from blockwright.types import (
    Budget,
    FitRequest,
    Preset,
    Problem,
    Statistic,
    Statistics,
)
from tests.claims.ledger import Grade, claim
from tests.layers import outlier_layer

FORMAT = DyadicIntFormat(8)
CANDIDATES = ("int2-g64:rtn", "int4-g64:rtn")
TEXT = "8k calibration, 4k selection tokens"


def rescaled(seed: int, bits: int, largest: float) -> tuple[Tensor, Tensor]:
    """10^5 sums up to 2e5 times numbers of four decades below ``largest``, in integers and not."""
    draw = torch.Generator().manual_seed(seed)
    sums = torch.randint(-200_000, 200_001, (100_000,), generator=draw)
    decades = 4 * torch.rand(100_000, generator=draw, dtype=torch.float64)
    M = largest * 10.0**-decades
    return requantize(sums, *dyadic(M, bits)), (sums * M).round().long()


@claim(
    method="dyadic",
    says="a multiplier of 31 bits and a shift round as real numbers do",
    measures="sums of 10^5, up to 2e5, that differ, and by how much less 1",
    grade=Grade.HARD,
    at_most=0,
)
def test_31_bits_rescale_exactly(seed: int) -> Iterator[float]:
    found, exact = rescaled(seed, 31, 1.0)
    yield float((found != exact).sum())
    yield float((found - exact).abs().max()) - 1


@claim(
    method="dyadic",
    says="15 bits do where outputs have 8, but for one in a thousand, off by 1",
    measures="share of 10^5 sums, rescaled to at most 127, that agree; 0 where one is off by more",
    grade=Grade.FIRM,
    at_least=0.999,
)
def test_15_bits_rescale_nearly_always(seed: int) -> float:
    found, exact = rescaled(seed, 15, 127 / 200_000)
    within = float((found - exact).abs().max()) <= 1
    return float((found == exact).float().mean()) if within else 0.0


@claim(
    method="hawq",
    says="from input to output it is integers, and nothing that calibration saw is cut off",
    measures="outputs that differ from 64-bit integers', and at the end of their range",
    grade=Grade.HARD,
    at_most=0,
)
def test_the_linear_is_integers(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    module = FORMAT.pack(Hawq().solve(layer.W_OI, layer.statistics, FORMAT), None, torch.bfloat16)
    if not multiplies_integers():
        pytest.skip("no int8 product on this machine")
    q = (layer.X_TI / module.scales[0]).round().long()
    sums = q @ module._signed(slice(None)).long().T
    by_hand = (sums * module.multiplier.long() + (1 << (module.shift.long() - 1))) >> module.shift
    found = module._integer_outputs(layer.X_TI)
    yield float((found != by_hand).sum())
    yield float((found.abs() >= FORMAT.output_top).sum())


@claim(
    method="hawq",
    says="one range for all inputs and tokens costs most where a few inputs are huge",
    measures="output error of dyadic8 / that of llmint8-p2, outlier-layer",
    grade=Grade.FIRM,
    at_least=2,
)
def test_what_one_range_costs(seed: int) -> float:
    if not multiplies_integers():
        pytest.skip("no int8 product on this machine")
    layer = outlier_layer(seed)
    x, exact = layer.X_heldout.bfloat16(), layer.X_heldout.bfloat16().float() @ layer.W_OI.T
    apart = LlmIntFormat(2)
    modules = (
        FORMAT.pack(Hawq().solve(layer.W_OI, layer.statistics, FORMAT), None, torch.bfloat16),
        apart.pack(Llmint().solve(layer.W_OI, layer.statistics, apart), None, torch.bfloat16),
    )
    errors = [float((module(x) - exact).norm() / exact.norm()) for module in modules]
    return errors[0] / errors[1]


@claim(
    method="hawq",
    says="Hutchinson's probes find the trace, and moments of inputs and gradients nearly the same",
    measures="either / the exact trace, softmax regression of 64 inputs and 16 classes",
    grade=Grade.FIRM,
    at_least=0.7,
    at_most=1.4,
)
def test_traces_agree(seed: int) -> Iterator[float]:
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(512, 64, generator=draw) * torch.linspace(0.2, 2, 64)
    W = (0.1 * torch.randn(16, 64, generator=draw)).requires_grad_()
    P = torch.softmax(X @ W.T, 1)
    loss = -(P.detach() * torch.log_softmax(X @ W.T, 1)).sum(1).mean()  # labels of the model itself
    (gradient,) = torch.autograd.grad(loss, W, create_graph=True)

    def multiply(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(gradient, W, v, retain_graph=True)
        return product

    with torch.no_grad():
        exact = float(((P * (1 - P)).sum(1) * X.square().sum(1)).mean())
        labels = torch.multinomial(P, 1, generator=draw)[:, 0]
        G = (P - torch.eye(16)[labels]).square().mean(0)
        yield moment_trace(X.T @ X / 512, G) / exact
    yield hutchinson_trace(multiply, (16, 64), generator=draw)[0] / exact


def opened(seed: int, work: Path) -> Run:
    """A run on 2 and 4 bits, rounded to nearest."""
    request = FitRequest(
        model=str(bundled_model()),
        out=work / "unwritten",
        budget=Budget(bits=3.3),
        candidates=CANDIDATES,
        preset=Preset.FAST,
        library=work / "library",
        seed=seed,
        threads=1,
        calibration_tokens=8_192,
        sequence_length=512,
        eval_tokens=4_096,
        speed=False,
    )
    return open_run(request, SilentProgress())


def charged_by_traces(run: Run, problem: Problem) -> Problem:
    """The problem with HAWQ's cost in place of ours, traces from the moments."""
    stream, moments = run.stream(dtype=run.capture_dtype), output_moments(run)
    costs: dict[tuple[str, str], float] = {}
    folder = run.library.work_folder("traces")
    needs = frozenset({Statistic.INPUT_GRAM})
    for block in forward_sweep(stream, run.calibration_inputs, folder, lambda _index: needs):
        sites = [site for site in run.skeleton.block_sites(block.index) if site.parameter]
        for site in sites:
            W_OI = weight_of(site, block.parameters[site.parameter]).float()
            trace = moment_trace(
                block.statistics[site.id].need(Statistic.INPUT_GRAM), moments[site.id]
            )
            for candidate in CANDIDATES:
                format = format_named(candidate.partition(":")[0])
                D_OI = Rtn().solve(W_OI, Statistics(tokens=1), format).weight() - W_OI
                costs[site.id, candidate] = trace_cost(D_OI, trace)
    return with_losses(problem, costs)


def with_losses(problem: Problem, losses: dict[tuple[str, str], float]) -> Problem:
    """Other losses of linears; tables keep theirs."""
    options = [
        replace(option, loss=losses.get((option.site, option.candidate), option.loss))
        for option in problem.options
    ]
    return replace(problem, options=tuple(options))


@cache
def measured(seed: int) -> tuple[float, float, float]:
    """KL of the plans at 3.3 bits by our cost, by traces, and of three by chance, their mean."""
    with TemporaryDirectory() as work:
        run = opened(seed, Path(work))
        ours = pose_problem(run, build_library(run)).problem
        draw = random.Random(seed)
        problems = [ours, charged_by_traces(run, ours), *(by_chance(ours, draw) for _ in range(3))]
        found = [
            measure_on_selection(run, solve(problem, Budget(bits=3.3))).measured["selection_loss"]
            for problem in problems
        ]
    return found[0], found[1], sum(found[2:]) / 3


def by_chance(problem: Problem, draw: random.Random) -> Problem:
    """Two bits cost a number that was drawn, four nothing."""
    losses = {
        (option.site, option.candidate): draw.random() if "int2" in option.candidate else 0.0
        for option in problem.options
        if option.candidate in CANDIDATES
    }
    return with_losses(problem, losses)


@pytest.mark.slow
@claim(
    method="hawq",
    says="bits by the trace of the Hessian beat bits by chance",
    measures=f"KL / mean of 3 plans by chance, bundled model, rtn, 3.3 bits, {TEXT}",
    grade=Grade.SOFT,
    at_most=0.9,
)
def test_traces_beat_chance_on_the_bundled_model(seed: int) -> float:
    _, traces, chance = measured(seed)
    return traces / chance


@pytest.mark.slow
@claim(
    method="hawq",
    says="our cost, which knows the direction of a change, does no worse",
    measures=f"KL by 1/2 tr(G D H D^T) / by traces, bundled model, rtn, 3.3 bits, {TEXT}",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_directions_do_no_worse_than_traces_on_the_bundled_model(seed: int) -> float:
    ours, traces, _ = measured(seed)
    return ours / traces
