"""Claims about zeros plus a thin product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest

from blockwright.methods.lowrank.lord import Lord
from blockwright.methods.sparsify.doped import Doped
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named
from blockwright.types import LinearMethod, PackedFormat, Statistic
from tests.claims.ledger import Grade, claim
from tests.claims.test_lqlora import planted
from tests.layers import Layer, synth_layer

SHAPE = (256, 256)
BOTH, ZEROS, RANK = "sparse60&rank-r13", "sparse50", "id-p57"
"""Of equal bytes there, up to 1%."""


def packed_format(name: str) -> PackedFormat:
    format = format_named(name)
    assert isinstance(format, PackedFormat)
    return format


def error(method: LinearMethod, layer: Layer, name: str) -> float:
    solution = method.solve(layer.W_OI, layer.statistics, format_named(name))
    return layer.heldout_error(solution.weight())


@cache
def planted_layer(seed: int) -> Layer:
    return planted(seed)


@claim(
    method="doped",
    says="the sum and either part alone are compared at equal bytes",
    measures=f"bytes of {ZEROS} and of {RANK} over those of {BOTH}, [256, 256]",
    grade=Grade.HARD,
    at_least=0.99,
    at_most=1.01,
)
def test_bytes_are_equal() -> Iterator[float]:
    size = packed_format(BOTH).stored_bytes(SHAPE)
    for name in (ZEROS, RANK):
        yield packed_format(name).stored_bytes(SHAPE) / size


@pytest.mark.slow
@claim(
    method="doped",
    says="where weights have large directions, zeros and a product lose less than either",
    measures=f"held-out error of {BOTH} / that of {ZEROS} by sparsegpt and of {RANK} by lord,"
    " outlier-layer with eight planted directions",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_planted_directions_are_taken_by_the_product(seed: int) -> Iterator[float]:
    layer = planted_layer(seed)
    both = error(Doped(), layer, BOTH)
    yield both / error(Sparsegpt(), layer, ZEROS)
    yield both / error(Lord(), layer, RANK)


@pytest.mark.slow
@claim(
    method="doped",
    says="turns never raise the error",
    measures=f"weighted error after 2, 4 and 8 turns / after half as many, {BOTH}, synth-layer",
    grade=Grade.HARD,
    at_most=1.0,
)
def test_turns_never_raise_the_error(seed: int) -> Iterator[float]:
    layer = synth_layer(seed)
    errors = []
    for rounds in (1, 2, 4, 8):
        solution = Doped(rounds=rounds).solve(layer.W_OI, layer.statistics, format_named(BOTH))
        gram = layer.statistics.need(Statistic.INPUT_GRAM)
        errors.append(quadratic_error(solution.weight() - layer.W_OI, gram))
    yield from (later / earlier for earlier, later in pairwise(errors))


@pytest.mark.slow
@claim(
    method="doped",
    says="weights without directions of their own gain nothing: zeros alone lose less",
    measures=f"held-out error of {BOTH} / that of {ZEROS} by sparsegpt, synth-layer",
    grade=Grade.SOFT,
    at_least=1.0,
)
def test_gaussian_weights_gain_nothing(seed: int) -> float:
    layer = synth_layer(seed)
    return error(Doped(), layer, BOTH) / error(Sparsegpt(), layer, ZEROS)
