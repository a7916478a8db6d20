"""Claims about masks that are searched for.  Errors are tr(D H D^T) / tr(W H W^T), held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blockwright.methods.sparsify.admm import Admm
from blockwright.methods.sparsify.icbs import Icbs
from blockwright.methods.sparsify.mfac import Mfac
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.numerics.block_descent import (
    Rule,
    forest_solve,
    progress,
    sorted_blocks,
    step,
    variable_block,
)
from blockwright.numerics.empirical_fisher import EmpiricalFisher
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped, masked_refit
from tests.claims.ledger import Grade, claim
from tests.claims.test_sparsify import HALVES, LAYERS, error, masked, solve
from tests.layers import Layer, gram, synth_layer

NUTINI = "Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster, JMLR 2022"

# -- card 20, ADMM


@pytest.mark.slow
@claim(
    method="admm",
    says="pulled together without end, it is the one-shot projection",
    measures="mask entries that differ from Wanda's, rho=1e4, both layers, 50% and 2:4",
    grade=Grade.HARD,
    at_most=0,
)
def test_admm_of_a_strong_pull_is_the_projection(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        for name in HALVES:
            masks = [solve(m, layer_of(seed), name).mask_OI for m in (Admm(rho=1e4), Wanda())]
            yield (masks[0] != masks[1]).sum().item()


@pytest.mark.slow
@claim(
    method="admm",
    says="the refit never raises the error of its projection",
    measures="L(refit) / L of the original values on the mask, damped H, both layers, 50%, 2:4",
    grade=Grade.HARD,
    at_most=1,
)
def test_admm_refit_never_raises_the_error(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        W, H = layer.W_OI, gram(layer.X_TI)
        for name in HALVES:
            mask = solve(Admm(), layer, name).mask_OI
            after = quadratic_error(masked_refit(W, H, mask, 0.01) - W, damped(H, 0.01))
            yield after / quadratic_error(W * mask - W, damped(H, 0.01))


@claim(
    method="admm",
    says="halves the error of the sweep without a refit",
    measures="error / that of sparsegpt@refit=false, synth-layer, 2:4",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_admm_beats_the_plain_sweep(seed: int) -> float:
    layer = synth_layer(seed)
    return error(Admm(), layer, "sparse2of4") / error(Sparsegpt(refit=False), layer, "sparse2of4")


@pytest.mark.slow
@claim(
    method="admm",
    says="its mask beats Wanda's and the sweep's, all refitted",
    measures="error / the lesser of theirs, both layers, 50% and 2:4",
    grade=Grade.FIRM,
    at_most=1.0,
)
def test_admm_beats_other_masks(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for name in HALVES:
            rivals = (error(method, layer, name) for method in (Wanda(), Sparsegpt()))
            yield error(Admm(), layer, name) / min(rivals)


@pytest.mark.slow
@claim(
    method="admm",
    says="the more zeros, the more it gains",
    measures="error / that of sparsegpt, both refitted, both layers, 80%",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_admm_gains_most_where_little_is_kept(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        yield error(Admm(), layer, "sparse80") / error(Sparsegpt(), layer, "sparse80")


# -- card 5, iCBS


def energy(mask_OI: Tensor, W_OI: Tensor, Hd_II: Tensor) -> float:
    return quadratic_error(torch.where(mask_OI, 0, W_OI), Hd_II)


@pytest.mark.slow
@claim(
    method="icbs",
    says="swaps keep the number of zeros and the values of what is kept",
    measures="rows or patterns of another count, plus kept values that changed, both layers",
    grade=Grade.HARD,
    at_most=0,
)
def test_icbs_keeps_counts_and_values(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for name, group in (("sparse50", 256), ("sparse2of4", 4)):
            found = solve(Icbs(refit=False), layer, name)
            wrong = (found.mask_OI.view(-1, group).sum(1) != group // 2).sum().item()
            kept = torch.where(found.mask_OI, layer.W_OI.bfloat16().float(), 0)
            yield wrong + (found.weight() != kept).sum().item()


@pytest.mark.slow
@claim(
    method="icbs",
    says="no pass raises the error of the mask",
    measures="E after p passes / E after fewer, p = 1, 2, 5, 50, damped H, both layers, 50%, 2:4",
    grade=Grade.HARD,
    at_most=1,
)
def test_icbs_never_raises_the_energy(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        Hd = damped(gram(layer.X_TI), 0.01)
        for name in HALVES:
            before = energy(solve(Wanda(refit=False), layer, name).mask_OI, layer.W_OI, Hd)
            for passes in (1, 2, 5, 50):
                found = solve(Icbs(refit=False, passes=passes), layer, name).mask_OI
                after = energy(found, layer.W_OI, Hd)
                yield after / before
                before = after


@pytest.mark.slow
@claim(
    method="icbs",
    says="interactions of pruned weights more than halve the error of Wanda's mask",
    measures="error / that of wanda, neither refitted, synth-layer, 50% and 2:4",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_icbs_beats_wanda_without_refit(seed: int) -> Iterator[float]:
    layer = synth_layer(seed)
    for name in HALVES:
        yield error(Icbs(refit=False), layer, name) / error(Wanda(refit=False), layer, name)


@pytest.mark.slow
@claim(
    method="icbs",
    says="behind a refit a part of the gain stays",
    measures="error / that of wanda, both refitted, both layers, 50% and 2:4",
    grade=Grade.FIRM,
    at_most=1.0,
)
def test_icbs_beats_wanda_behind_a_refit(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for name in HALVES:
            yield error(Icbs(), layer, name) / error(Wanda(), layer, name)


# -- card 16, M-FAC


def on_samples(layer: Layer, rows: int) -> Layer:
    """The layer, calibrated on so many inputs alone."""
    return replace(layer, X_TI=layer.X_TI[:rows])


@claim(
    method="mfac",
    says="the inverse that is never formed is the dense one",
    measures="|F^-1 x - dense| / |dense|, and of the diagonal, 32 samples, 64 to 256 weights, fp64",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_mfac_inverts_exactly(seed: int) -> Iterator[float]:
    random = torch.Generator().manual_seed(seed)
    for size in (64, 128, 256):
        G = torch.randn(32, size, generator=random, dtype=torch.float64)
        x = torch.randn(3, size, generator=random, dtype=torch.float64)
        eye = torch.eye(size, dtype=torch.float64)
        inverse = torch.linalg.inv(0.01 * eye + G.T @ G / 32)
        fisher = EmpiricalFisher.of(G, 0.01)
        yield float((fisher.product(x) - x @ inverse).norm() / (x @ inverse).norm())
        yield float((fisher.diagonal() - inverse.diagonal()).norm() / inverse.diagonal().norm())


@pytest.mark.slow
@claim(
    method="mfac",
    says="512 samples and no Gram beat magnitude, and Wanda's mask without a refit",
    measures="error / that of wanda@refit=false, which beats magnitude, both layers, 50% and 80%",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_mfac_beats_the_diagonal(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = on_samples(layer_of(seed), 512)
        statistics = replace(layer.statistics, input_samples=layer.X_TI)
        for name in ("sparse50", "sparse80"):
            found = Mfac().solve(layer.W_OI, statistics, masked(name))
            rival = error(Wanda(refit=False), layer, name)
            yield layer.heldout_error(found.weight()) / rival


@pytest.mark.slow
@claim(
    method="mfac",
    says="pruning in rounds beats pruning at once",
    measures="error of 4 rounds / that of one, 2048 samples, both layers, 50% and 80%",
    grade=Grade.FIRM,
    at_most=1.0,
)
def test_mfac_rounds_help(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = on_samples(layer_of(seed), 2048)
        statistics = replace(layer.statistics, input_samples=layer.X_TI)
        for name in ("sparse50", "sparse80"):
            four, one = (
                layer.heldout_error(Mfac(rounds=n).solve(layer.W_OI, statistics, f).weight())
                for n, f in ((4, masked(name)), (1, masked(name)))
            )
            yield four / one


# -- card 21, block coordinate descent

Choice = Callable[[Tensor, Tensor], Tensor]
"""(H, g) -> the coordinates to move."""


def scaled_quadratic(seed: int, size: int = 200) -> tuple[Tensor, Tensor]:
    """H, ill-scaled, and b, float64."""
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(size, size // 2, generator=random, dtype=torch.float64)
    scale = torch.randn(size, generator=random, dtype=torch.float64).exp()
    H = scale[:, None] * (A @ A.T / size + 0.1 * torch.eye(size)) * scale
    return H, torch.randn(size, generator=random, dtype=torch.float64)


def gap(seed: int, choose: Choice, steps: int) -> float:
    """f - its minimum after so many exact steps from 0."""
    H, b = scaled_quadratic(seed)
    x, g = torch.zeros_like(b), -b
    for _ in range(steps):
        block = choose(H, g)
        x[block] += step(H, g, block)
    best = torch.linalg.solve(H, b)
    return float((x - best) @ H @ (x - best) / 2)


def of_partition(rule: Rule, size: int) -> Choice:
    def choose(H: Tensor, g: Tensor) -> Tensor:
        blocks = sorted_blocks(H.diagonal(), size)
        return blocks[progress(rule, H, g, blocks).argmax()]

    return choose


def at_random(seed: int) -> Choice:
    random = torch.Generator().manual_seed(seed)
    return lambda H, g: torch.randint(len(g), (1,), generator=random)


@claim(
    method="block descent",
    family="solver",
    paper=NUTINI,
    says="an exact step gains half of what GSQ says, GSL never promises more, forests are exact",
    measures="largest relative difference, or excess of the promise, 40 blocks of 5",
    grade=Grade.HARD,
    at_most=1e-9,
)
def test_block_rules_say_what_is_gained(seed: int) -> Iterator[float]:
    H, b = scaled_quadratic(seed)
    blocks = sorted_blocks(H.diagonal(), 5)
    said, promised = (progress(rule, H, -b, blocks) for rule in (Rule.GSQ, Rule.GSL))
    for block, full, least in zip(blocks, said.tolist(), promised.tolist(), strict=True):
        change = step(H, -b.clone(), block)
        gained = float(b[block] @ change - change @ H[block[:, None], block] @ change / 2)
        yield abs(gained / (full / 2) - 1)
        yield max(0.0, least / 2 / gained - 1)
    chain = torch.diag(H.diagonal()) + sum(torch.diag(H.diagonal(k), k) for k in (-1, 1))
    exact = torch.linalg.solve(chain, b)
    yield float((forest_solve(chain, b) - exact).norm() / exact.norm())


@pytest.mark.slow
@claim(
    method="block descent",
    family="solver",
    paper=NUTINI,
    says="dividing by the curvature beats the largest gradient, and chance",
    measures="gap(GSL) / gap(GS) and / gap(random), 200 ill-scaled coordinates, 400 single steps",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_gsl_beats_gs_and_chance(seed: int) -> Iterator[float]:
    for rival in (of_partition(Rule.GS, 1), at_random(seed)):
        yield gap(seed, of_partition(Rule.GSL, 1), 400) / gap(seed, rival, 400)


@pytest.mark.slow
@claim(
    method="block descent",
    family="solver",
    paper=NUTINI,
    says="blocks that may vary beat the best of fixed ones, and these the largest gradient",
    measures="gap(variable GSD) / gap(GSQ), gap(GSQ) / gap(GS), ill-scaled, 100 blocks of 5",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_variable_blocks_beat_fixed_ones(seed: int) -> Iterator[float]:
    fixed = gap(seed, of_partition(Rule.GSQ, 5), 100)
    yield gap(seed, lambda H, g: variable_block(g.square() / H.diagonal(), 5), 100) / fixed
    yield fixed / gap(seed, of_partition(Rule.GS, 5), 100)
