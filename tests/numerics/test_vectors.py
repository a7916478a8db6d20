"""Vector codebooks: nearest entries, k-means with empty cells, least squares, sweep and descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics import vectors
from blockwright.numerics.column_rounding import column_rounder
from blockwright.numerics.column_sweep import sweep, tiles_of
from blockwright.numerics.coordinate_descent import descend
from blockwright.numerics.inverse_hessian import damped, upper_factor
from blockwright.numerics.losses import row_errors
from blockwright.numerics.vector_sweep import descend_vectors, sweep_vectors
from blockwright.numerics.vectors import empty_cells, kmeans, nearest, refilled, refit_codebook
from blockwright.registry import format_named
from blockwright.types import Grid, GridFormat


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def input_gram(seed: int, inputs: int) -> Tensor:
    X = normal(seed, 3 * inputs, inputs) @ normal(seed + 1, inputs, inputs) / inputs**0.5
    gram: Tensor = X.T @ X / len(X)
    return gram


@pytest.mark.parametrize("weighted", [False, True])
def test_nearest_is_the_least_of_all_distances(
    weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "CHUNK_DISTANCES", 40)
    z, E, w = normal(0, 33, 4), normal(1, 10, 4), normal(2, 33, 4).square()
    weight = w if weighted else torch.ones_like(w)
    distances = ((z[:, None] - E) ** 2 * weight[:, None]).sum(2)
    assert torch.equal(nearest(z, E, w if weighted else None), distances.argmin(1))
    assert nearest(z[:0], E).shape == (0,)


def test_kmeans_finds_planted_clusters() -> None:
    centers = 10 * normal(0, 8, 3)
    z = (centers[:, None] + 0.01 * normal(1, 8, 50, 3)).view(-1, 3)
    E = kmeans(z, torch.ones_like(z), 8, rounds=30, generator=generator())
    assert (E[nearest(centers, E)] - centers).abs().max() < 0.05
    assert len(empty_cells(nearest(z, E), 8)) == 0


def test_an_empty_cell_moves_to_the_vector_of_largest_error() -> None:
    z = torch.tensor([[0.0], [0.2], [5.0], [-3.0]])
    E = torch.tensor([[0.0], [100.0], [200.0]])
    codes = nearest(z, E)
    assert empty_cells(codes, 3).tolist() == [1, 2]
    moved = refilled(z, torch.ones_like(z), E, codes)
    assert sorted(moved[1:].flatten().tolist()) == [-3.0, 5.0]
    assert float(moved[0, 0]) == pytest.approx(float(z.mean()))
    # nothing is left to serve: what is exact already stays
    exact = torch.tensor([[1.0], [1.0]])
    kept = refilled(exact, torch.ones_like(exact), torch.tensor([[1.0], [7.0]]), nearest(exact, E))
    assert torch.equal(kept, torch.tensor([[1.0], [7.0]]))


def test_more_entries_than_vectors_and_weights_of_zero() -> None:
    z = normal(0, 5, 2)
    E = kmeans(z, torch.ones_like(z), 16, rounds=5, generator=generator())
    assert E.shape == (16, 2)
    assert torch.equal(E[nearest(z, E)], z)
    E = kmeans(z, torch.zeros_like(z), 4, rounds=5, generator=generator())
    assert torch.isfinite(E).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_refit_codebook_is_that_of_least_squares(mapped: bool) -> None:
    O, V, D, K = 6, 4, 2, 5  # noqa: E741
    W, H, S = normal(0, O, V * D), input_gram(1, V * D), normal(2, O, V * D).abs()
    codes = torch.randint(0, K - 1, (O, V), generator=generator())  # the last cell is empty
    start = normal(3, K, D)
    basis = torch.cat([start, torch.ones(K, 1)], 1) if mapped else None
    found = refit_codebook(start, basis, codes, S, W, H, steps=200)

    def weight(E: Tensor) -> Tensor:
        return E[codes].view(O, -1) * S

    root = torch.linalg.cholesky(H)
    directions = torch.eye(((D + 1) if mapped else K) * D).view(-1, D + 1 if mapped else K, D)
    placed = [direction if basis is None else basis @ direction for direction in directions]
    A = torch.stack([(weight(E) @ root).flatten() for E in placed], 1)
    b = ((W - weight(start)) @ root).flatten()
    theta = torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution[:, 0]
    best = start + sum(t * E for t, E in zip(theta, placed, strict=True))
    errors = [float(row_errors(weight(E) - W, H).sum()) for E in (found, best, start)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert errors[0] < 0.9 * errors[2]
    if not mapped:
        assert torch.equal(found[-1], start[-1])


def scalar_grid(W: Tensor) -> Grid:
    format = format_named("int3-row")
    assert isinstance(format, GridFormat)
    return format.fit_grid(W)


def test_vectors_of_one_value_are_swept_and_descended_as_columns() -> None:
    W, H = normal(0, 7, 160), damped(input_gram(1, 160), 0.01)
    grid, order = scalar_grid(W), torch.arange(160)
    rounder = column_rounder(grid, order)
    U = upper_factor(H, 0.0)
    expected = W.T.clone()
    sweep(expected, U, rounder, tiles_of(160))
    found = W.clone()
    by_vector = lambda v, w, M: rounder(v, w[:, 0])[:, None].clone()  # noqa: E731
    sweep_vectors(found, U, 1, by_vector)
    assert (found != expected.T).float().mean() < 1e-2
    descend(expected, W.T, H, rounder, tiles_of(160))
    descend_vectors(found, W, H, 1, by_vector)
    assert (found != expected.T).float().mean() < 2e-2


def test_descent_never_raises_the_error_of_a_row() -> None:
    W, H, E = normal(0, 9, 24), damped(input_gram(1, 24), 0.01), 1.5 * normal(2, 16, 4)

    def rounder(v: int, w: Tensor, M: Tensor) -> Tensor:
        return E[nearest(w @ M, E @ M)]

    Q = E[nearest(W.view(-1, 4), E)].view(W.shape).clone()
    before = row_errors(Q - W, H)
    for _ in range(4):
        descend_vectors(Q, W, H, 4, rounder)
        after = row_errors(Q - W, H)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    swept = W.clone()
    sweep_vectors(swept, upper_factor(H, 0.0), 4, rounder)
    nearest_entries = E[nearest(W.view(-1, 4), E)].view(W.shape)
    assert row_errors(swept - W, H).sum() < row_errors(nearest_entries - W, H).sum()
