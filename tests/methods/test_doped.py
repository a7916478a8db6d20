"""Zeros plus a thin product, solved by turns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.doped import Doped
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.numerics.losses import quadratic_error, row_errors
from blockwright.registry import format_named, resolve
from blockwright.types import Candidate, MaskedSumFormat, Statistic, Statistics
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=48, in_features=64, tokens=300)


def summed(name: str) -> MaskedSumFormat:
    format = format_named(name)
    assert isinstance(format, MaskedSumFormat)
    return format


def error(layer: Layer, W_hat_OI: Tensor) -> float:
    return quadratic_error(W_hat_OI - layer.W_OI, layer.statistics.need(Statistic.INPUT_GRAM))


def test_a_candidate_without_a_method_is_filled_by_it() -> None:
    format, (method,) = resolve(Candidate.parse("sparse50&rank-r8"))
    assert isinstance(format, MaskedSumFormat)
    assert isinstance(method, Doped)


@pytest.mark.parametrize("name", ["sparse60", "sparse2of4", "panel16-50"])
def test_a_product_never_makes_zeros_worse(layer: Layer, name: str) -> None:
    alone = Sparsegpt().solve(layer.W_OI, layer.statistics, format_named(name)).weight()
    found = Doped().solve(layer.W_OI, layer.statistics, summed(f"{name}&rank-r4")).weight()
    assert error(layer, found) < error(layer, alone)


def test_more_turns_are_never_worse(layer: Layer) -> None:
    format = summed("sparse60&rank-r6")
    errors = [
        error(layer, Doped(rounds=rounds).solve(layer.W_OI, layer.statistics, format).weight())
        for rounds in (1, 2, 4, 8)
    ]
    assert all(later <= earlier * 1.002 for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


def test_a_weight_of_both_kinds_is_found() -> None:
    """A few large values on a product of rank 4: neither part alone is near it."""
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(48, 4, generator=draw) @ torch.randn(4, 64, generator=draw)
    spikes = torch.rand(48, 64, generator=draw) > 0.95
    W = (W + 6 * spikes * torch.randn(48, 64, generator=draw)).contiguous()
    seen = Statistics(tokens=1000, input_gram=torch.eye(64))
    both = Doped().solve(W, seen, summed("sparse90&rank-r4")).weight()
    zeros = Sparsegpt().solve(W, seen, format_named("sparse80")).weight()
    assert (both - W).square().sum() < 0.25 * (zeros - W).square().sum()


def test_weighed_by_the_loss_it_errs_where_the_loss_feels_little(layer: Layer) -> None:
    G_O = torch.logspace(-3, 0, 48)
    gram = layer.statistics.need(Statistic.INPUT_GRAM)
    seen = Statistics(tokens=300, input_gram=gram, output_gradient=G_O)
    format = summed("sparse70&rank-r6")
    losses = []
    for fisher in (True, False):
        found = Doped(fisher=fisher).solve(layer.W_OI, seen, format).weight()
        losses.append(float(G_O @ row_errors(found - layer.W_OI, gram)))
    assert losses[0] < losses[1]


def test_what_cannot_be_solved_is_refused(layer: Layer) -> None:
    format = summed("sparse50&rank-r4")
    with pytest.raises(NumericalError, match="no calibration token"):
        Doped().solve(layer.W_OI, Statistics(tokens=0), format)
    with pytest.raises(CandidateError, match="doped cannot fill sparse50"):
        Doped().solve(layer.W_OI, layer.statistics, format_named("sparse50"))
    with pytest.raises(CandidateError, match="needs 1 or more"):
        Doped(rounds=0)
