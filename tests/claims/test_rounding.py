"""Claims about learned rounding.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from blockwright.methods.quantize.adaround import AdaRound
from blockwright.methods.quantize.cbq import Cbq
from blockwright.methods.quantize.discquant import DiscQuant
from blockwright.methods.quantize.efficientqat import EfficientQat
from blockwright.methods.quantize.flexround import FlexRound
from blockwright.methods.quantize.gptq import Gptq
from blockwright.methods.quantize.lrq import Lrq
from blockwright.methods.quantize.quantease import QuantEase
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.inverse_hessian import damped
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.numerics.outliers import outlier_bound
from blockwright.registry import format_named
from blockwright.types import GridFormat, LinearMethod, Statistic
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, outlier_layer, synth_layer

LEARNED = (FlexRound, Lrq, AdaRound, EfficientQat, DiscQuant, Cbq)


@cache
def small_layer(seed: int) -> Layer:
    """The layer of the learned methods: 128 x 128."""
    return outlier_layer(seed, 128, 128, 1024)


@cache
def wide_layer(seed: int) -> Layer:
    return outlier_layer(seed)


def solved(method: LinearMethod, layer: Layer, format: str) -> Tensor:
    return method.solve(layer.W_OI, layer.statistics, format_named(format)).weight()


@cache
def small_error(method: LinearMethod, seed: int, format: str) -> float:
    layer = small_layer(seed)
    return layer.heldout_error(solved(method, layer, format))


def against(method: LinearMethod, rival: LinearMethod, seed: int, bits: int) -> float:
    """Error over the rival's, groups of 64, 128 x 128."""
    format = f"int{bits}-g64"
    return small_error(method, seed, format) / small_error(rival, seed, format)


# -- QuantEase


def quantease_against_gptq(seed: int, bits: int) -> float:
    layer, format = wide_layer(seed), f"int{bits}-g64"
    mine, rival = (
        layer.heldout_error(solved(method, layer, format)) for method in (QuantEase(), Gptq())
    )
    return mine / rival


@claim(
    method="quantease",
    says="codes and scales found in turns beat GPTQ at 2 bits",
    measures="error / that of gptq, outlier-layer, int2-g64",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_quantease_beats_gptq_at_two_bits(seed: int) -> float:
    return quantease_against_gptq(seed, 2)


@claim(
    method="quantease",
    says="at 3 and 4 bits as well",
    measures="error / that of gptq, outlier-layer, int{3,4}-g64",
    grade=Grade.FIRM,
    at_most=0.85,
)
def test_quantease_beats_gptq_at_three_and_four_bits(seed: int) -> Iterator[float]:
    return (quantease_against_gptq(seed, bits) for bits in (3, 4))


@pytest.mark.slow
@claim(
    method="quantease",
    says="before rows are scaled, never worse than GPTQ, in no row",
    measures="rows of larger error on the damped Gram, both layers, int{2,3,4}-g64 and int4",
    grade=Grade.HARD,
    at_most=0,
)
def test_quantease_is_never_worse_in_any_row(seed: int) -> Iterator[float]:
    for layer in (wide_layer(seed), synth_layer(seed)):
        H_II = damped(layer.statistics.need(Statistic.INPUT_GRAM), 0.01)
        for format in ("int2-g64", "int3-g64", "int4-g64", "int4"):
            mine, rival = (
                row_errors(solved(method, layer, format) - layer.W_OI, H_II)
                for method in (QuantEase(unbiased=False), Gptq())
            )
            yield (mine > rival * (1 + 1e-5)).sum().item()


@claim(
    method="quantease",
    says="outputs follow the original's one to one",
    measures="E[y_hat y] / E[y^2] on the damped Gram, mean over rows, outlier-layer, int2-g64",
    grade=Grade.FIRM,
    at_least=0.998,
    at_most=1.002,
)
def test_quantease_outputs_follow_one_to_one(seed: int) -> float:
    layer = wide_layer(seed)
    P_OI = layer.W_OI @ damped(layer.statistics.need(Statistic.INPUT_GRAM), 0.01)
    given_O = (P_OI * solved(QuantEase(), layer, "int2-g64")).sum(1)
    return float((given_O / (P_OI * layer.W_OI).sum(1)).mean())


# -- card 7, FlexRound and LRQ; AdaRound


@pytest.mark.slow
@claim(
    method="flexround",
    says="learned division beats rounding to nearest by far at 2 and 3 bits",
    measures="error / that of rtn, outlier-layer 128 x 128, int{2,3}-g64",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_flexround_at_two_and_three_bits(seed: int) -> Iterator[float]:
    return (against(FlexRound(), Rtn(), seed, bits) for bits in (2, 3))


@pytest.mark.slow
@claim(
    method="flexround",
    says="steps larger than one make it better than learned rounding up or down",
    measures="error / that of adaround, outlier-layer 128 x 128, int3-g64",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_flexround_beats_adaround(seed: int) -> float:
    return against(FlexRound(), AdaRound(), seed, 3)


@claim(
    method="flexround",
    says="at 4 bits the gain is smaller",
    measures="error / that of rtn, outlier-layer 128 x 128, int4-g64",
    grade=Grade.SOFT,
    at_most=0.8,
)
def test_flexround_at_four_bits(seed: int) -> float:
    return against(FlexRound(), Rtn(), seed, 4)


@pytest.mark.slow
@claim(
    method="lrq",
    says="factors of rank 16 keep most of FlexRound's gain",
    measures="error / that of rtn, outlier-layer 128 x 128, int{2,3}-g64",
    grade=Grade.FIRM,
    at_most=0.75,
)
def test_lrq_at_two_and_three_bits(seed: int) -> Iterator[float]:
    return (against(Lrq(), Rtn(), seed, bits) for bits in (2, 3))


@pytest.mark.slow
@claim(
    method="adaround",
    says="learned rounding up or down beats rounding to nearest",
    measures="error / that of rtn, outlier-layer 128 x 128, int3-g64",
    grade=Grade.FIRM,
    at_most=0.88,
)
def test_adaround_at_three_bits(seed: int) -> float:
    return against(AdaRound(), Rtn(), seed, 3)


# -- card 8, DiscQuant


@claim(
    method="discquant",
    says="the corner-most point that keeps m sample outputs has at most m fractions",
    measures="fractional entries of the linear program's vertex / m, n = 300, m = 20",
    grade=Grade.HARD,
    at_most=1,
)
def test_discquant_vertex_has_few_fractions(seed: int) -> float:
    x, _, samples = corner_most(seed)
    return ((x > 1e-6) & (x < 1 - 1e-6)).sum().item() / len(samples)


@claim(
    method="discquant",
    says="rounding that vertex disturbs the sample outputs less than rounding to nearest",
    measures="|G (round(x) - y)| / |G (round(y) - y)|, n = 300, m = 20",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_discquant_vertex_rounds_better(seed: int) -> float:
    x, y, samples = corner_most(seed)
    found, nearest = ((samples @ (point.round() - y)).norm() for point in (x, y))
    return float(found / nearest)


def corner_most(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The vertex x of {x in [0, 1]^n: G x = G y} that maximises <2 y - 1, x>; y and G."""
    random = torch.Generator().manual_seed(seed)
    y = torch.rand(300, generator=random, dtype=torch.float64)
    samples = torch.randn(20, 300, generator=random, dtype=torch.float64)
    found = linprog(
        -(2 * y - 1).numpy(),
        A_eq=samples.numpy(),
        b_eq=(samples @ y).numpy(),
        bounds=(0, 1),
        method="highs-ds",
    )
    return torch.from_numpy(found.x), y, samples


@claim(
    method="discquant",
    says="the walk to a corner beats rounding to nearest on one linear",
    measures="error / that of rtn, outlier-layer 128 x 128, int3-g64",
    grade=Grade.FIRM,
    at_most=0.92,
)
def test_discquant_at_three_bits(seed: int) -> float:
    return against(DiscQuant(), Rtn(), seed, 3)


# -- card 9, CBQ


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """Normal weights of deviation 0.02 with 8 values of 10 to 20 deviations, and their places."""
    random = torch.Generator().manual_seed(seed)
    W_OI = 0.02 * torch.randn(256, 256, generator=random)
    places = torch.randperm(W_OI.numel(), generator=random)[:8]
    signs = 1 - 2 * (torch.rand(8, generator=random) > 0.5).float()
    W_OI.view(-1)[places] = 0.02 * (10 + 10 * torch.rand(8, generator=random)) * signs
    return W_OI, places


@claim(
    method="cbq",
    says="coarse-to-fine detection finds exactly the planted outliers",
    measures="weights wrongly found or missed, 8 values of 10 to 20 deviations in 256 x 256",
    grade=Grade.FIRM,
    at_most=0,
)
def test_cbq_finds_the_planted_outliers(seed: int) -> float:
    W_OI, places = planted(seed)
    found = (W_OI.abs().view(-1) > outlier_bound(W_OI.abs())).nonzero()[:, 0]
    return float(len(set(found.tolist()) ^ set(places.tolist())))


@claim(
    method="cbq",
    says="with outliers cut off, the other weights of their rows are rounded much more finely",
    measures="squared error of the others in these rows / without cutting, int3-row",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_cbq_cutting_spares_the_others(seed: int) -> float:
    W_OI, places = planted(seed)
    format, bound = format_named("int3-row"), outlier_bound(W_OI.abs())
    assert isinstance(format, GridFormat)
    others = torch.ones_like(W_OI, dtype=torch.bool)
    others.view(-1)[places] = False
    rows = ~others.all(1)
    errors = []
    for weight in (W_OI.clamp(-bound, bound), W_OI):
        grid = format.fit_grid(weight)
        W_hat_OI = grid.decode(grid.encode(weight, slice(None)), slice(None))
        errors.append(((W_hat_OI - W_OI) * others)[rows].square().sum().item())
    return errors[0] / errors[1]


@claim(
    method="cbq",
    says="two thin factors gain a little on one linear",
    measures="error / that of rtn, outlier-layer 128 x 128, int3-g64",
    grade=Grade.SOFT,
    at_most=0.98,
)
def test_cbq_at_three_bits(seed: int) -> float:
    return against(Cbq(), Rtn(), seed, 3)


# -- card 10, EfficientQAT


@pytest.mark.slow
@claim(
    method="efficientqat",
    says="weights and scales trained together halve the error of 2 bits",
    measures="error / that of rtn, outlier-layer 128 x 128, int2-g64",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_efficientqat_at_two_bits(seed: int) -> float:
    return against(EfficientQat(), Rtn(), seed, 2)


@pytest.mark.slow
@claim(
    method="efficientqat",
    says="and lower that of 3 bits",
    measures="error / that of rtn, outlier-layer 128 x 128, int3-g64",
    grade=Grade.FIRM,
    at_most=0.75,
)
def test_efficientqat_at_three_bits(seed: int) -> float:
    return against(EfficientQat(), Rtn(), seed, 3)


# -- all that learn


def never_worse(method: type[LinearMethod]) -> Iterator[float]:
    """Error on the calibration inputs over that of rounding to nearest, 20 steps, both layers."""
    for layer in (small_layer(0), synth_layer(0, 128, 1024)):
        H_II = layer.statistics.need(Statistic.INPUT_GRAM)
        for format in ("int2-g64", "int3-g32-sym", "int4-row"):
            mine, nearest = (
                quadratic_error(solved(each, layer, format) - layer.W_OI, H_II)
                for each in (method(steps=20), Rtn())  # type: ignore[call-arg]
            )
            yield mine / nearest


@pytest.mark.parametrize("method", LEARNED)
def test_what_learns_is_never_worse_than_its_start(method: type[LinearMethod]) -> None:
    assert max(never_worse(method)) <= 1 + 1e-5


@pytest.mark.parametrize("method", LEARNED)
def test_without_steps_it_is_rounding_to_nearest(method: type[LinearMethod]) -> None:
    if method is Cbq:
        pytest.skip("it may cut outliers off even so")
    layer = small_layer(0)
    found = solved(method(steps=0), layer, "int3-g64")  # type: ignore[call-arg]
    assert torch.equal(found, solved(Rtn(), layer, "int3-g64"))
