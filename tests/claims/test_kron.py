"""Claims about sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import pytest
import torch

from blockwright.methods.lowrank.kron import Kron
from blockwright.methods.lowrank.lord import Lord
from blockwright.numerics.kronecker import refine, scaled_svd
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.sparse_bayes import joint_support
from blockwright.registry import format_named
from blockwright.types import KroneckerSplit, LinearMethod
from tests.bundled import bundled_layers
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, gram, outlier_layer, synth_layer

LAYERS: tuple[Callable[[int], Layer], ...] = (synth_layer, outlier_layer)


def error(method: LinearMethod, layer: Layer, format: str) -> float:
    solution = method.solve(layer.W_OI, layer.statistics, format_named(format))
    return layer.heldout_error(solution.weight())


def after_rounds(layer: Layer, split: KroneckerSplit, rounds: int) -> list[float]:
    """Errors on the calibration inputs at the start and after each round."""
    H = damped(gram(layer.X_TI), 0.01)
    found = scaled_svd(layer.W_OI, H, split)
    errors = []
    for left in range(rounds, -1, -1):
        W_hat = split.from_blocks(found.A_PR @ found.B_RQ)
        errors.append(quadratic_error(W_hat - layer.W_OI, H))
        if left:
            found = refine(layer.W_OI, H, split, found, 1)
    return errors


@claim(
    method="kron",
    paper=Kron.paper,
    says="a Kronecker product is recovered, and any weight by enough of them",
    measures="|W_hat - W|^2 / |W|^2 before values are rounded: one product 24x30, 12 products of"
    " any weight",
    grade=Grade.HARD,
    at_most=1e-10,
)
def test_a_kronecker_product_is_recovered(seed: int) -> Iterator[float]:
    random = torch.Generator().manual_seed(seed)
    A, B = torch.randn(4, 3, generator=random), torch.randn(6, 10, generator=random)
    weights = (torch.kron(A, B), torch.randn(24, 30, generator=random))
    for W, terms in zip(weights, (1, 12), strict=True):
        split = KroneckerSplit(4, 3, 6, 10, terms)
        found = scaled_svd(W, torch.eye(30), split)
        D = split.from_blocks(found.A_PR @ found.B_RQ) - W
        yield float(D.square().sum() / W.square().sum())


@pytest.mark.slow
@claim(
    method="kron",
    says="solving the factors by turns never raises the error",
    measures="error after a round / before, largest of 5 rounds, damped H, three cuts",
    grade=Grade.HARD,
    at_most=1 + 1e-6,
)
def test_turns_never_raise_the_error(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        for cut in ((256, 2, 1, 128, 20), (16, 16, 16, 16, 20), (8, 32, 32, 8, 20)):
            errors = after_rounds(layer_of(seed), KroneckerSplit(*cut), 5)
            yield max(after / before for before, after in pairwise(errors))


@pytest.mark.slow
@claim(
    method="kron",
    says="the best sum for the outputs is far from the nearest one",
    measures="error of kron{2,16x16}-p50 / that of metric=weight, synth- and outlier-layer",
    grade=Grade.FIRM,
    at_most=0.35,
)
def test_the_metric_decides(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for format in ("kron2-p50", "kron16x16-p50"):
            yield error(Kron(), layer, format) / error(Kron(metric="weight"), layer, format)


@claim(
    method="kron",
    says="with a tenth of the bytes, inputs in two parts lose less than low rank",
    measures="error of kron2-p10 / that of rank-p10 by lord, synth- and outlier-layer",
    grade=Grade.FIRM,
    at_most=0.97,
)
def test_two_parts_beat_low_rank_with_few_bytes(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        yield error(Kron(), layer, "kron2-p10") / error(Lord(), layer, "rank-p10")


@pytest.mark.slow
@claim(
    method="kron",
    says="on a trained model, with a quarter of the bytes, inputs in two parts lose less than low"
    " rank, and than rows and a mixing",
    measures="geometric mean over a block's linears of the error of kron2-p25 / that of rank-p25,"
    " then of id-p25, by lord, bundled model, blocks 1 and 6, 4k calibration and held-out tokens",
    grade=Grade.FIRM,
    at_most=0.95,
)
def test_two_parts_beat_low_rank_on_a_trained_model() -> Iterator[float]:
    for block in (1, 6):
        layers = bundled_layers(block, 4096).values()
        for kind in ("rank", "id"):
            ratios = [
                error(Kron(), layer, "kron2-p25") / error(Lord(), layer, f"{kind}-p25")
                for layer in layers
            ]
            yield float(torch.tensor(ratios).log().mean().exp())


def planted(seed: int, samples: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W [24, 64] with half of the rows and 16 columns, inputs, and outputs with noise 0.1."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    W = torch.zeros(24, 64, dtype=torch.float64)
    rows, columns = torch.randperm(24, generator=random)[:12], torch.randperm(64, generator=random)
    W[rows[:, None], columns[:16]] = normal(12, 16)
    X = normal(samples, 64)
    return W, X, X @ W.T + 0.1 * normal(samples, 24)


def independent_mean(X: torch.Tensor, Y: torch.Tensor, rounds: int = 50) -> torch.Tensor:
    """Sparse Bayesian learning with a switch per weight."""
    switches = torch.ones(Y.shape[1], X.shape[1], dtype=torch.float64)
    for _ in range(rounds + 1):
        precision = 100 * X.T @ X + torch.diag_embed(1 / switches.clamp(min=1e-12))
        Sigma = torch.linalg.inv(precision)
        mean = torch.einsum("oij,oj->oi", Sigma, 100 * Y.T @ X)
        switches = mean.square() + Sigma.diagonal(dim1=1, dim2=2)
    return mean


@claim(
    method="sbl",
    says="switches of rows and columns recover a weight from fewer samples than one per weight",
    measures="|W_hat - W|^2 / that of a switch per weight, alternating EM, 24 samples of 64 inputs",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_joint_switches_recover_more(seed: int) -> float:
    return recovered(seed, "alternating")


@claim(
    method="sbl",
    says="taking both switches from the leading pair is better still",
    measures="|W_hat - W|^2 / that of a switch per weight, SVD rule, 24 samples of 64 inputs",
    grade=Grade.FIRM,
    at_most=0.05,
)
def test_the_leading_pair_recovers_more_still(seed: int) -> float:
    return recovered(seed, "svd")


def recovered(seed: int, rule: Literal["alternating", "svd"]) -> float:
    W, X, Y = planted(seed)
    found = joint_support(Y.T @ X / len(X), X.T @ X / len(X), len(X) / 0.01, rule=rule)
    rival = independent_mean(X, Y)
    return float((found.mean_OI - W).square().sum() / (rival - W).square().sum())


@claim(
    method="sbl",
    says="alternating EM never raises the marginal likelihood's cost",
    measures="largest rise of -log p(Y) between rounds, relative, 30 rounds, planted support",
    grade=Grade.HARD,
    at_most=1e-9,
)
def test_em_never_raises_the_cost(seed: int) -> float:
    _, X, Y = planted(seed)
    b, H = Y.T @ X / len(X), X.T @ X / len(X)
    costs = []
    for rounds in range(31):
        found = joint_support(b, H, len(X) / 0.01, rounds=rounds, rule="alternating")
        kernel = torch.einsum("ti,i,si->ts", X, found.columns_I, X)
        noise = 0.01 * torch.eye(len(X), dtype=torch.float64)
        covariance = noise + found.rows_O[:, None, None] * kernel
        fit = torch.linalg.solve(covariance, Y.T[:, :, None])[:, :, 0]
        costs.append(float(torch.logdet(covariance).sum() + (fit * Y.T).sum()))
    return max((after - before) / abs(before) for before, after in pairwise(costs))
