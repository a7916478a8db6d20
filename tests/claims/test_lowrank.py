"""Claims about low rank.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch

from blockwright.methods.lowrank.cur import Cur
from blockwright.methods.lowrank.lord import Lord
from blockwright.methods.lowrank.svd import Svd
from blockwright.numerics.interpolation import mix_rows, pivot_rows, places
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.numerics.masked_refit import damped
from blockwright.numerics.spectra import normalized, rank_above, threshold_for
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.registry import format_named, method_named
from blockwright.types import LinearMethod, PackedFormat, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, gram, outlier_layer, synth_layer

SEEDS = (0, 1, 2)
LAYERS: tuple[Callable[[int], Layer], ...] = (synth_layer, outlier_layer)


def error(method: LinearMethod, layer: Layer, format: str) -> float:
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


@pytest.mark.slow
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


def of_rank(rows: int, columns: int, rank: int, noise: float, seed: int) -> torch.Tensor:
    """A matrix of this rank and unit-variance entries, plus noise; float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    product = normal(rows, rank) @ normal(rank, columns)
    noisy: torch.Tensor = product / rank**0.5 + noise * normal(rows, columns)
    return noisy


@claim(
    method="lord",
    says="with the covariance and a changed bias, too, the error is the sum of the dropped"
    " eigenvalues",
    measures="E|y - y_hat|^2 / that sum - 1, b' = b + (1 - V V^T) W mu, shifted inputs, 3 seeds",
    grade=Grade.HARD,
    at_least=-1e-4,
    at_most=1e-4,
)
def test_the_error_with_a_bias_is_what_was_dropped() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            X = layer.X_TI.double() + torch.linspace(-1, 1, layer.X_TI.shape[1])
            mean = X.mean(0)
            covariance = ((X - mean).T @ (X - mean) / len(X)).float()
            found, W = weighted_svd(layer.W_OI, covariance), layer.W_OI.double()
            for rank in (16, 64, 128):
                left, right = (factor.double() for factor in found.factors(rank))
                bias = (W - left @ right) @ mean
                y_hat = X @ (left @ right).T + bias
                yield float((X @ W.T - y_hat).square().sum(1).mean()) / found.error(rank) - 1


@claim(
    method="lord",
    says="R rows and a mixing of them are the same weight as two factors",
    measures="|difference| / |weight|, before values are rounded, ranks 16 to 192, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_rows_and_mixing_are_the_same_weight() -> Iterator[float]:
    for seed in SEEDS:
        for layer_of in LAYERS:
            layer = layer_of(seed)
            found = weighted_svd(layer.W_OI, damped(gram(layer.X_TI), 0.01))
            for rank in (16, 64, 192):
                left, right = found.factors(rank)
                kept = pivot_rows(left)[:rank]
                rows = left[kept] @ right
                both = torch.cat([rows, mix_rows(left, kept) @ rows])[places(len(left), kept)]
                yield float((both - left @ right).norm() / (left @ right).norm())


@pytest.mark.slow
@claim(
    method="lord",
    says="projecting onto the main subspace of the outputs beats the plain SVD by far",
    measures="error of rank-p{50,80} / that of svd@metric=weight, synth- and outlier-layer",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_the_outputs_subspace_beats_the_plain_svd(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for format in ("rank-p50", "rank-p80"):
            yield error(Lord(), layer, format) / error(Svd(metric="weight"), layer, format)


@pytest.mark.slow
@claim(
    method="id",
    says="at equal bytes the same method loses less than with two factors, more so with more bytes",
    measures="error of id-p{50,80} / that of rank-p{50,80}, lord, synth- and outlier-layer",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_rows_and_mixing_lose_less_at_equal_bytes(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        for percent in (50, 80):
            of_id, of_rank = (f"{stem}-p{percent}" for stem in ("id", "rank"))
            yield error(Lord(), layer, of_id) / error(Lord(), layer, of_rank)


@claim(
    method="lord",
    says="rows weighed by the gradient lower the second-order loss",
    measures="tr(G D H D^T) of fisher=true / of fisher=false, damped H, id-p50, G over 4 decades",
    grade=Grade.HARD,
    at_most=1.0,
)
def test_weighing_rows_lowers_the_second_order_loss(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer, format = layer_of(seed), format_named("id-p50")
        G_O = torch.logspace(-2, 2, len(layer.W_OI))
        H = damped(gram(layer.X_TI), 0.01)
        seen = Statistics(tokens=2048, input_gram=gram(layer.X_TI), output_gradient=G_O)
        losses = [
            float((G_O * row_errors(found.weight() - layer.W_OI, H)).sum())
            for fisher in (True, False)
            for found in [Lord(fisher=fisher).solve(layer.W_OI, seen, format)]
        ]
        yield losses[0] / losses[1]


def decaying_and_flat() -> list[torch.Tensor]:
    """Eight spectra of 128, alternately k^-1.2 and 1..0.5, of equal energy."""
    steps = torch.arange(1, 129, dtype=torch.float64)
    kinds = (steps**-1.2, torch.linspace(1, 0.5, 128, dtype=torch.float64))
    return [kinds[place % 2] / kinds[place % 2].norm() * 128**0.5 for place in range(8)]


@claim(
    method="welore",
    says="one threshold on normalized singular values beats equal ranks",
    measures="dropped energy / that of equal ranks, 8 spectra of 128, half the ranks",
    grade=Grade.FIRM,
    at_most=0.3,
)
def test_one_threshold_beats_equal_ranks() -> float:
    sigmas = decaying_and_flat()
    spectra = [normalized(sigma) for sigma in sigmas]
    threshold = threshold_for(spectra, 0.5)
    dropped = sum(
        float(sigma[rank_above(spectrum, threshold) :].square().sum())
        for sigma, spectrum in zip(sigmas, spectra, strict=True)
    )
    return dropped / sum(float(sigma[64:].square().sum()) for sigma in sigmas)


@claim(
    method="welore",
    says="the threshold meets the share of ranks to be left out",
    measures="|share left out - target|, 8 spectra and 8 random ones, targets 0.05 to 0.95",
    grade=Grade.HARD,
    at_most=0.005,
)
def test_the_share_left_out_is_the_target() -> Iterator[float]:
    random = torch.Generator().manual_seed(0)
    of_weights = [torch.linalg.svdvals(torch.randn(64, 96, generator=random)) for _ in range(8)]
    for sigmas in (decaying_and_flat(), of_weights):
        spectra = [normalized(sigma) for sigma in sigmas]
        for target in (0.05, 0.3, 0.5, 0.8, 0.95):
            kept = sum(rank_above(each, threshold_for(spectra, target)) for each in spectra)
            yield abs(1 - kept / sum(map(len, spectra)) - target)


@claim(
    method="welore",
    says="a higher threshold never keeps more ranks",
    measures="most that a rank grew from one threshold to the next, steps of 0.005",
    grade=Grade.HARD,
    at_most=0,
)
def test_ranks_fall_with_the_threshold() -> Iterator[float]:
    for sigma in decaying_and_flat():
        ranks = [rank_above(normalized(sigma), 0.005 * step) for step in range(201)]
        yield float(max(after - before for before, after in pairwise(ranks)))


@claim(
    method="ranks",
    says="a weight of low rank takes the bytes of its factors, one of full rank its own",
    measures="bytes stored / those of rank-r32, and of bf16: 128x256 of rank 32 and random, t1",
    grade=Grade.HARD,
    at_least=1,
    at_most=1,
)
def test_bytes_follow_the_weights_own_rank() -> Iterator[float]:
    layer = outlier_layer(0, out_features=128, in_features=256, tokens=600)
    random = torch.Generator().manual_seed(0)
    thin, wide = (torch.randn(size, 32, generator=random) for size in (128, 256))
    flat = torch.linalg.qr(torch.randn(256, 128, generator=random))[0].T
    for W_OI, expected in ((thin @ wide.T, "rank-r32"), (flat, "bf16")):
        format, like = format_named("ranks-t1"), format_named(expected)
        assert isinstance(format, PackedFormat)
        assert isinstance(like, PackedFormat)
        solution = method_named("welore", ()).solve(W_OI, layer.statistics, format)
        stored = format.pack(solution, None, torch.bfloat16).stored_tensors().values()
        yield sum(t.nbytes for t in stored) / like.stored_bytes((128, 256))


@claim(
    method="cur",
    says="a matrix of rank R is exactly R of its rows and a mixing of them",
    measures="|W_hat - W| / |W|, 80x120 of rank 10, before values are rounded, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_low_rank_is_recovered_exactly(seed: int) -> float:
    M = of_rank(80, 120, 10, 0.0, seed)
    kept = pivot_rows(M)[:10]
    both = torch.cat([M[kept], mix_rows(M, kept).double() @ M[kept]])[places(80, kept)]
    return float((both - M).norm() / M.norm())


@claim(
    method="cur",
    says="pivoted rows with the optimal mixing are near the SVD",
    measures="|W_hat - W| / that of the SVD of the same rank, 80x120 of rank 10 plus noise",
    grade=Grade.FIRM,
    at_least=1,
    at_most=2,
)
def test_pivoted_rows_are_near_the_svd(seed: int) -> float:
    M = of_rank(80, 120, 10, 0.05, seed)
    kept = pivot_rows(M)[:10]
    both = torch.cat([M[kept], mix_rows(M, kept).double() @ M[kept]])[places(80, kept)]
    return float((both - M).norm() / torch.linalg.svdvals(M)[10:].norm())


@claim(
    method="cur",
    says="random anchors with the inverse of their intersection lose far more",
    measures="|W_hat - W| / that of pivoted rows, 10 random rows and columns, 80x120 of rank 10 +"
    " noise",
    grade=Grade.FIRM,
    at_least=3,
)
def test_random_anchors_lose_more(seed: int) -> float:
    M, random = of_rank(80, 120, 10, 0.05, seed), torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(size, generator=random)[:10] for size in M.shape)
    anchored = M[:, columns] @ torch.linalg.pinv(M[rows][:, columns], rtol=1e-3) @ M[rows]
    kept = pivot_rows(M)[:10]
    both = torch.cat([M[kept], mix_rows(M, kept).double() @ M[kept]])[places(80, kept)]
    return float((anchored - M).norm() / (both - M).norm())


@claim(
    method="cur",
    says="the weight's own rows cost what lord's rows of the projected weight do not",
    measures="error of id-p50 / that of lord, synth- and outlier-layer",
    grade=Grade.FIRM,
    at_least=1.2,
    at_most=4,
)
def test_own_rows_lose_more_than_projected_ones(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        layer = layer_of(seed)
        yield error(Cur(), layer, "id-p50") / error(Lord(), layer, "id-p50")
