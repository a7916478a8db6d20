"""SimVQ on weights: starts, fits, empty cells, and what stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.simvq import Simvq
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.vectors import empty_cells, nearest
from blockwright.registry import format_named
from blockwright.tuning import train_codebook
from blockwright.types import Statistic, Statistics, VectorFormat
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=32, in_features=64, tokens=300)


def vq(name: str) -> VectorFormat:
    format = format_named(name)
    assert isinstance(format, VectorFormat)
    return format


def error(layer: Layer, method: Simvq, name: str = "vq16-d2-g64") -> float:
    D = method.solve(layer.W_OI, layer.statistics, vq(name)).weight() - layer.W_OI
    return quadratic_error(D, layer.statistics.need(Statistic.INPUT_GRAM))


@pytest.mark.parametrize("start", ["kmeans", "simvq"])
def test_every_turn_is_at_least_as_good(layer: Layer, start: str) -> None:
    first = Simvq(start=start, steps=20, rounds=0, passes=0, unbiased=False)  # type: ignore[arg-type]
    errors = [
        error(layer, replace(first, rounds=rounds, passes=passes))
        for rounds, passes in ((0, 0), (1, 0), (2, 0), (2, 2))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_free_entries_lose_no_more_than_one_map_of_a_random_codebook(layer: Layer) -> None:
    method = Simvq(start="simvq", steps=20, unbiased=False)
    assert error(layer, method) < error(layer, replace(method, fit="map"))


def test_zero_groups_stay_zero_and_a_zero_weight_has_a_codebook(layer: Layer) -> None:
    W = layer.W_OI.clone()
    W[3] = 0
    found = Simvq().solve(W, layer.statistics, vq("vq16-d2-g32"))
    assert (found.weight()[3] == 0).all()
    assert torch.isfinite(found.weight()).all()
    nothing = Simvq().solve(torch.zeros_like(W), layer.statistics, vq("vq256-d4-row"))
    assert (nothing.weight() == 0).all()


def test_more_entries_than_vectors_of_different_value_is_exact_but_for_8_bits(
    layer: Layer,
) -> None:
    W = layer.W_OI.sign() * 0.0625
    found = Simvq().solve(W, layer.statistics, vq("vq256-d4-row"))
    assert (found.weight() - W).abs().max() < 0.01 * 0.0625
    codes = found.codes_OV.long()
    assert len(empty_cells(codes, 256)) > 0


def test_dead_inputs_are_coded(layer: Layer) -> None:
    gram = layer.statistics.need(Statistic.INPUT_GRAM).clone()
    gram[:, 10] = gram[10] = 0
    found = Simvq().solve(
        layer.W_OI, replace(layer.statistics, input_gram=gram), vq("vq256-d4-row")
    )
    assert torch.isfinite(found.weight()).all()


def test_a_map_moves_every_entry_and_single_entries_stay_where_nothing_chose_them() -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(500, 4, generator=random)
    C = torch.randn(64, 4, generator=random) / 2 + 3
    found = {
        mapped: train_codebook(
            z, C, mapped=mapped, steps=100, rate=0.05, generator=torch.Generator().manual_seed(1)
        )
        for mapped in (True, False)
    }
    moved = {mapped: (E != C).any(1) for mapped, E in found.items()}
    assert moved[True].all()
    assert not moved[False].all()
    used = {mapped: 64 - len(empty_cells(nearest(z, E), 64)) for mapped, E in found.items()}
    assert used[True] > 2 * used[False]


def test_sites_without_tokens_other_formats_and_bad_options_are_refused(layer: Layer) -> None:
    with pytest.raises(NumericalError, match="no calibration token"):
        Simvq().solve(layer.W_OI, Statistics(tokens=0), vq("vq256-d4-row"))
    with pytest.raises(CandidateError, match="simvq cannot fill int4-g64"):
        Simvq().solve(layer.W_OI, layer.statistics, format_named("int4-g64"))
    with pytest.raises(CandidateError, match="simvq@start: got 'random', allowed: kmeans, simvq"):
        Simvq(start="random")  # type: ignore[arg-type]
    with pytest.raises(CandidateError, match="simvq@fit: got 'none', allowed: entries, map"):
        Simvq(fit="none")  # type: ignore[arg-type]
    with pytest.raises(CandidateError, match="simvq@damping: got 0"):
        Simvq(damping=0)
    with pytest.raises(CandidateError, match="simvq@passes: got -1"):
        Simvq(passes=-1)
