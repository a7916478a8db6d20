"""Claims about pruning.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from blockwright.methods.sparsify.magnitude import Magnitude
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped, exact_refit, iterative_refit, masked_refit
from blockwright.registry import format_named
from blockwright.types import LinearMethod, MaskedFormat, MaskedSolution, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, gram, outlier_layer, synth_layer

SEEDS = (0, 1, 2)
LAYERS: tuple[Callable[[int], Layer], ...] = (synth_layer, outlier_layer)
HALVES = ("sparse50", "sparse2of4")
OURS = "none; least squares on a fixed mask"
MISHRA = "Mishra et al., Accelerating Sparse Deep Neural Networks, 2021"


def masked(name: str) -> MaskedFormat:
    format = format_named(name)
    assert isinstance(format, MaskedFormat)
    return format


def solve(method: LinearMethod, layer: Layer, format: str) -> MaskedSolution:
    solution = method.solve(layer.W_OI, layer.statistics, masked(format))
    assert isinstance(solution, MaskedSolution)
    return solution


def error(method: LinearMethod, layer: Layer, format: str) -> float:
    return layer.heldout_error(solve(method, layer, format).weight())


def small_rows(seed: int) -> Tensor:
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))


def least_cost(cost_OI: Tensor) -> Tensor:
    """The least total cost of zeroing half of each row, over all masks, [O]."""
    halves = [cost_OI[:, list(zeroed)].sum(1) for zeroed in combinations(range(8), 4)]
    return torch.stack(halves).amin(0)


# -- card 1, magnitude


@claim(
    method="magnitude",
    paper=Magnitude.paper,
    says="keeps exactly the asked number of weights, as they were",
    measures="rows of another count, plus kept values that changed, outlier-layer, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_magnitude_keeps_counts_and_values() -> Iterator[float]:
    for seed in SEEDS:
        W = outlier_layer(seed).W_OI
        for name in ("sparse50", "sparse80", "sparse2of4", "sparse1of8"):
            found = Magnitude().solve(W, Statistics(tokens=0), masked(name))
            wrong = (found.mask_OI.sum(1) != masked(name).kept(256)).sum().item()
            kept = torch.where(found.mask_OI, W.bfloat16().float(), 0)
            yield wrong + (found.weight() != kept).sum().item()


@claim(
    method="magnitude",
    paper=Magnitude.paper,
    says="with uncorrelated inputs of equal size no mask is better",
    measures="error / least error over all masks of half of 8 inputs - 1, 32 rows, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_magnitude_is_optimal_for_equal_inputs() -> Iterator[float]:
    for seed in SEEDS:
        W = small_rows(seed)
        mask = Magnitude().solve(W, Statistics(tokens=0), masked("sparse50")).mask_OI
        cost = W.square()
        yield float(((cost * ~mask).sum(1) / least_cost(cost)).max()) - 1


# -- card 2, Wanda


@claim(
    method="wanda",
    paper=Wanda.paper,
    says="with uncorrelated inputs of equal size its mask is that of magnitude",
    measures="mask entries that differ, outlier-layer, 50% and 2:4, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_wanda_is_magnitude_for_equal_inputs() -> Iterator[float]:
    equal = Statistics(tokens=1, input_gram=2 * torch.eye(256))
    for seed in SEEDS:
        W = outlier_layer(seed).W_OI
        for name in HALVES:
            masks = [
                method.solve(W, equal, masked(name)).mask_OI for method in (Wanda(), Magnitude())
            ]
            yield (masks[0] != masks[1]).sum().item()


@claim(
    method="wanda",
    paper=Wanda.paper,
    says="its mask is the best of the diagonal model, row by row",
    measures="sum W^2 h of the zeroed / least over all masks - 1, 8 inputs, 32 rows, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_wanda_is_optimal_for_the_diagonal_model() -> Iterator[float]:
    for seed in SEEDS:
        W, h = small_rows(seed), torch.linspace(0.1, 5, 8)
        statistics = Statistics(tokens=1, input_gram=h.diag())
        mask = Wanda().solve(W, statistics, masked("sparse50")).mask_OI
        cost = W.square() * h
        yield float(((cost * ~mask).sum(1) / least_cost(cost)).max()) - 1


@claim(
    method="wanda",
    paper=Wanda.paper,
    says="weighting by the inputs beats magnitude",
    measures="error without refit / that of magnitude, synth- and outlier-layer, 50%, 2:4, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_wanda_beats_magnitude() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            for name in HALVES:
                yield error(Wanda(refit=False), layer, name) / error(Magnitude(), layer, name)


# -- card 3, SparseGPT


@claim(
    method="sparsegpt",
    paper=Sparsegpt.paper,
    says="with uncorrelated inputs kept values stay as they were",
    measures="kept values that changed, outlier-layer, diagonal H, 50% and 2:4, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_sparsegpt_leaves_values_alone_for_uncorrelated_inputs() -> Iterator[float]:
    diagonal = Statistics(tokens=1, input_gram=torch.linspace(0.1, 5, 256).diag())
    for seed in SEEDS:
        W = outlier_layer(seed).W_OI
        for name in HALVES:
            found = Sparsegpt(refit=False).solve(W, diagonal, masked(name))
            expected = torch.where(found.mask_OI, W.bfloat16().float(), 0)
            yield (found.weight() != expected).sum().item()


@claim(
    method="sparsegpt",
    paper=Sparsegpt.paper,
    says="compensating for what is pruned beats pruning alone",
    measures="error without refit / that of Wanda, synth-layer, 50% and 2:4, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_sparsegpt_beats_wanda() -> Iterator[float]:
    for seed in SEEDS:
        layer = synth_layer(seed)
        for name in HALVES:
            yield error(Sparsegpt(refit=False), layer, name) / error(
                Wanda(refit=False), layer, name
            )


@pytest.mark.slow
@claim(
    method="sparsegpt",
    paper=Sparsegpt.paper,
    says="after the refit, the swept mask of 2:4 still beats Wanda's",
    measures="error / that of Wanda, both refitted, synth- and outlier-layer, 2:4, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.98,
)
def test_the_swept_mask_is_better() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            yield error(Sparsegpt(), layer, "sparse2of4") / error(Wanda(), layer, "sparse2of4")


@claim(
    method="sparsegpt",
    paper=Sparsegpt.paper,
    says="quantizing in a second sweep from refitted values beats the paper's joint sweep",
    measures="error / that of refit=false, sparse2of4+int4-g64, synth- and outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.95,
)
def test_two_sweeps_beat_the_joint_one() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer, name = layer_of(seed), "sparse2of4+int4-g64"
            yield error(Sparsegpt(), layer, name) / error(Sparsegpt(refit=False), layer, name)


# -- card 0, masked refit


@pytest.mark.slow
@claim(
    method="wanda",
    paper=OURS,
    says="the refit never raises the calibration error",
    measures="L(refit) / L before, damped H, Wanda and magnitude, 50%, 80%, 2:4, 3 seeds",
    grade=Grade.HARD,
    at_most=1,
)
def test_the_refit_never_raises_the_error() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            W, H = layer.W_OI, gram(layer.X_TI)
            Hd = damped(H, 0.01)
            for name in (*HALVES, "sparse80"):
                for method in (Wanda(refit=False), Magnitude()):
                    mask = solve(method, layer, name).mask_OI
                    after = quadratic_error(masked_refit(W, H, mask, 0.01) - W, Hd)
                    yield after / quadratic_error(W * mask - W, Hd)


@claim(
    method="wanda",
    paper=OURS,
    says="refitted values solve the normal equations on the mask",
    measures="|residual| / |right side| on the mask, synth-layer, 50%, both solvers, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-4,
)
def test_the_refit_solves_the_normal_equations() -> Iterator[float]:
    for seed in SEEDS:
        layer = synth_layer(seed)
        W, Hd = layer.W_OI, damped(gram(layer.X_TI), 0.01)
        mask = solve(Wanda(refit=False), layer, "sparse50").mask_OI
        for found in (exact_refit(W, Hd, mask), iterative_refit(W, Hd, mask, iterations=30)):
            residual = ((found - W).double() @ Hd.double()) * mask
            yield float(residual.norm() / ((W @ Hd) * mask).norm())


@pytest.mark.slow
@claim(
    method="wanda",
    paper=OURS,
    says="the refit halves the error of a pure mask",
    measures="error / that without refit, 50% and 2:4, synth- and outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_the_refit_halves_the_error() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            for name in HALVES:
                yield error(Wanda(), layer, name) / error(Wanda(refit=False), layer, name)


@pytest.mark.slow
@claim(
    method="wanda",
    paper=OURS,
    says="fifteen iterations reach the error of the exact refit",
    measures="L / L(exact) - 1, damped H, 50%, 80% and 2:4, synth- and outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=1e-3,
)
def test_few_iterations_suffice() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            W, Hd = layer.W_OI, damped(gram(layer.X_TI), 0.01)
            for name in (*HALVES, "sparse80"):
                mask = solve(Wanda(refit=False), layer, name).mask_OI
                exact, found = (
                    quadratic_error(refit(W, Hd, mask) - W, Hd)
                    for refit in (exact_refit, iterative_refit)
                )
                yield found / exact - 1


@pytest.mark.slow
@claim(
    method="wanda",
    paper=OURS,
    says="damped by a tenth where tokens are few, it helps even then",
    measures="error / that without refit, 64, 128 and 256 tokens of 256 inputs, 50%, both layers",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_the_refit_helps_with_few_tokens(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        for tokens in (64, 128, 256):
            whole = layer_of(seed)
            layer = replace(whole, X_TI=whole.X_TI[:tokens])
            yield error(Wanda(), layer, "sparse50") / error(Wanda(refit=False), layer, "sparse50")


# -- card 4, N:M as formats


@claim(
    method="sparse",
    paper=MISHRA,
    says="2:4 in bfloat16 takes 9 bits per weight, packed and read back bit for bit",
    measures="|bits per weight - 9|, plus values that differ, outlier-layer, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_two_of_four_round_trips() -> Iterator[float]:
    for seed in SEEDS:
        found = solve(Sparsegpt(), outlier_layer(seed), "sparse2of4")
        packed = masked("sparse2of4").pack(found, None, torch.bfloat16)
        changed = (packed.dequantize() != found.weight()).sum().item()
        yield abs(packed.stored_bytes * 8 / 256**2 - 9) + changed


@claim(
    method="sparse",
    paper=MISHRA,
    says="the sparse tensor cores multiply what is stored",
    measures="max |y - y_dense| / max |y_dense|, 2:4 in bfloat16 on CUDA, 3 seeds",
    grade=Grade.HARDWARE,
    at_most=2e-2,
)
def test_tensor_cores_multiply_right() -> Iterator[float]:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA with sparse tensor cores")
    for seed in SEEDS:
        layer = outlier_layer(seed)
        packed = masked("sparse2of4").pack(
            solve(Sparsegpt(), layer, "sparse2of4"), None, torch.bfloat16
        )
        x = layer.X_TI[:64].bfloat16().cuda()
        module = getattr(packed, "to")("cuda")  # noqa: B009
        exact = x.float() @ packed.dequantize().T
        assert module.prepare().kernel == "semi-structured"
        yield float((module(x) - exact).abs().max() / exact.abs().max())
