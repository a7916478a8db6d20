"""Claims about vector codebooks of weights.

Collapse: vectors are eight weights of the outlier-layer over their root mean square, the codebook
of 512 entries starts beside them, shifted by 3; 300 batches of 512 vectors, Adam.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from blockwright.formats.int import IntFormat
from blockwright.formats.vq import VqFormat
from blockwright.methods.quantize.quantease import QuantEase
from blockwright.methods.quantize.rtn import Rtn
from blockwright.methods.quantize.simvq import Simvq
from blockwright.numerics.vectors import empty_cells, kmeans, nearest
from blockwright.tuning import train_codebook
from blockwright.types import Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import outlier_layer

DIM, ENTRIES, SHIFT = 8, 512, 3.0
VANILLA_RATES = (0.003, 0.01, 0.03, 0.1)
"""The larger, the more of the codebook is dragged to the vectors, by chance."""
TWO_BITS = VqFormat(256, 4, 0)


def vectors(seed: int, dim: int = DIM) -> Tensor:
    """Weights over the root mean square of their group of 64, [N, dim]."""
    W = outlier_layer(seed).W_OI.view(256, -1, 64)
    return (W / W.square().mean(2, keepdim=True).sqrt()).view(-1, dim)


@cache
def trained(seed: int, *, mapped: bool, rate: float) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    C = torch.randn(ENTRIES, DIM, generator=random) / DIM**0.5 + SHIFT
    return train_codebook(
        vectors(seed), C, mapped=mapped, steps=300, rate=rate, generator=random, batch=512
    )


def used(z: Tensor, E: Tensor) -> float:
    return 1 - len(empty_cells(nearest(z, E), len(E))) / len(E)


def error(z: Tensor, E: Tensor) -> float:
    return float((E[nearest(z, E)] - z).square().mean() / z.square().mean())


@pytest.mark.slow
@claim(
    method="simvq",
    says="through one linear map no entry dies",
    measures="share of 512 entries in use, codebook started beside the vectors",
    grade=Grade.FIRM,
    at_least=0.95,
)
def test_a_mapped_codebook_is_used(seed: int) -> float:
    return used(vectors(seed), trained(seed, mapped=True, rate=0.01))


@pytest.mark.slow
@claim(
    method="simvq",
    says="trained entry by entry most of the codebook collapses",
    measures="share of 512 entries in use at the best of four rates",
    grade=Grade.FIRM,
    at_most=0.25,
)
def test_a_plain_codebook_collapses(seed: int) -> float:
    z = vectors(seed)
    found = [trained(seed, mapped=False, rate=rate) for rate in VANILLA_RATES]
    return used(z, min(found, key=lambda E: error(z, E)))


@pytest.mark.slow
@claim(
    method="simvq",
    says="which shows in the error: 0.4 of it against rates to 0.01, 0.6 against a rate of 0.1",
    measures="error / that of entry by entry at the best of four rates, 8 weights, 512 entries",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_a_mapped_codebook_errs_less(seed: int) -> float:
    z = vectors(seed)
    plain = min(error(z, trained(seed, mapped=False, rate=rate)) for rate in VANILLA_RATES)
    return error(z, trained(seed, mapped=True, rate=0.01)) / plain


@pytest.mark.slow
@claim(
    method="simvq",
    says="for weights that stand still k-means is better than one map of random vectors",
    measures="error of k-means / that of the mapped codebook, 4 weights, 256 entries",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_kmeans_beats_a_mapped_codebook(seed: int) -> float:
    z, random = vectors(seed, 4), torch.Generator().manual_seed(seed)
    C = torch.randn(256, 4, generator=random) / 2
    mapped = train_codebook(z, C, mapped=True, steps=300, rate=0.01, generator=random, batch=512)
    return error(z, kmeans(z, torch.ones_like(z), 256, rounds=25, generator=random)) / error(
        z, mapped
    )


@pytest.mark.slow
@claim(
    method="simvq",
    says="four weights to a code of 8 bits err less than 2 bits each, codebook started at random",
    measures="squared error of the weight / that of rtn int2-g64, vq256-d4-g64, start=simvq",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_vectors_beat_two_bits_rounded(seed: int) -> float:
    W = outlier_layer(seed).W_OI
    plain = Statistics(tokens=1, input_gram=torch.eye(256))
    method = Simvq(start="simvq", fit="map", rounds=0, passes=0, unbiased=False)
    found = method.solve(W, plain, VqFormat(256, 4, 64)).weight()
    rounded = Rtn().solve(W, plain, IntFormat(2, 64, symmetric=False)).weight()
    return float((found - W).square().sum() / (rounded - W).square().sum())


@pytest.mark.slow
@claim(
    method="simvq",
    says="codes of vectors beat improved integers at 2, 3 and 4 bits, at fewer bytes",
    measures="held-out error / that of quantease int2-, int3-, int4-g64, outlier-layer",
    grade=Grade.FIRM,
    at_most=1,
)
def test_vectors_beat_improved_integers(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    for bits, format in ((2, TWO_BITS), (3, VqFormat(64, 2, 0)), (4, VqFormat(256, 2, 0))):
        integers = IntFormat(bits, 64, symmetric=False)
        assert format.stored_bytes((256, 256)) < integers.stored_bytes((256, 256))
        plain = QuantEase().solve(layer.W_OI, layer.statistics, integers).weight()
        found = Simvq().solve(layer.W_OI, layer.statistics, format).weight()
        yield layer.heldout_error(found) / layer.heldout_error(plain)


@claim(
    method="vq",
    says="what is solved is what is stored, and what the kernel multiplies",
    measures="values that differ when loaded, when looked up, bytes - the declared ones",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_vq_stores_what_was_solved(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    solution = Simvq(rounds=1, passes=0).solve(layer.W_OI, layer.statistics, TWO_BITS)
    packed = TWO_BITS.pack(solution, None, torch.bfloat16)
    loaded = TWO_BITS.empty((256, 256), bias=False, dtype=torch.bfloat16)
    loaded.load_stored(packed.stored_tensors())
    yield float((loaded.dequantize() != solution.weight()).sum())
    yield float((packed._looked_up().prepare().dequantize() != solution.weight()).sum())
    saved = sum(tensor.nbytes for tensor in packed.stored_tensors().values())
    yield saved - TWO_BITS.stored_bytes((256, 256))
