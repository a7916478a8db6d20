"""Claims about low rank.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from blockwright.methods.lowrank.svd import Svd
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.registry import format_named
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, gram, outlier_layer, synth_layer

SEEDS = (0, 1, 2)
LAYERS: tuple[Callable[[int], Layer], ...] = (synth_layer, outlier_layer)


def error(method: Svd, layer: Layer, format: str) -> float:
    solution = method.solve(layer.W_OI, layer.statistics, format_named(format))
    return layer.heldout_error(solution.weight())


@claim(
    method="svd",
    paper=Svd.paper,
    says="the error is the sum of the dropped singular values squared",
    measures="L / that sum - 1, damped H, synth- and outlier-layer, ranks 16 to 192, 3 seeds",
    grade=Grade.HARD,
    at_least=-1e-4,
    at_most=1e-4,
)
def test_the_error_is_what_was_dropped() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            H = damped(gram(layer.X_TI), 0.01)
            found = weighted_svd(layer.W_OI, H)
            for rank in (16, 64, 128, 192):
                left, right = found.factors(rank)
                yield quadratic_error(left @ right - layer.W_OI, H) / found.error(rank) - 1


@claim(
    method="svd",
    paper=Svd.paper,
    says="no other weight of the same rank has a lower error",
    measures="L / that of the plain and the diagonally scaled SVD, damped H, 3 seeds",
    grade=Grade.HARD,
    at_most=1,
)
def test_nothing_of_the_same_rank_is_better() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            H = damped(gram(layer.X_TI), 0.01)
            for rank in (16, 64, 128, 192):
                for metric in (torch.eye(256), H.diagonal().diag()):
                    left, right = weighted_svd(layer.W_OI, metric).factors(rank)
                    other = quadratic_error(left @ right - layer.W_OI, H)
                    yield weighted_svd(layer.W_OI, H).error(rank) / other


@claim(
    method="svd",
    paper=Svd.paper,
    says="whitening by the inputs beats the plain SVD by far",
    measures="error of rank-p{50,80} / that of metric=weight, synth- and outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_whitening_beats_the_plain_svd() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            for format in ("rank-p50", "rank-p80"):
                yield error(Svd(), layer, format) / error(Svd(metric="weight"), layer, format)


@claim(
    method="svd",
    paper=Svd.paper,
    says="full whitening beats scaling the inputs one by one (ASVD)",
    measures="error of rank-p{50,80} / that of metric=diagonal, synth-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=0.35,
)
def test_whitening_beats_scaling() -> Iterator[float]:
    for seed in SEEDS:
        layer = synth_layer(seed)
        for format in ("rank-p50", "rank-p80"):
            yield error(Svd(), layer, format) / error(Svd(metric="diagonal"), layer, format)


@claim(
    method="rank",
    paper="none; our composition of formats",
    says="8-bit factors cost nothing",
    measures="error of rank-p50+int8 / that of rank-p50, synth- and outlier-layer, 3 seeds",
    grade=Grade.FIRM,
    at_most=1.02,
)
def test_eight_bit_factors_cost_nothing() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            yield error(Svd(), layer, "rank-p50+int8") / error(Svd(), layer, "rank-p50")
