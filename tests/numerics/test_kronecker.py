"""The nearest sum of Kronecker products: closed forms and exact cases."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.kronecker import (
    Aim,
    Factors,
    input_factors,
    refine,
    scaled_svd,
    solve_left,
    solve_right,
)
from blockwright.numerics.losses import quadratic_error
from blockwright.types import KroneckerSplit

SPLIT = KroneckerSplit(4, 3, 5, 6, 2)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(size: int = 18) -> torch.Tensor:
    X = random(200, size, seed=7) @ random(size, size, seed=8)
    return X.T @ X / 200


def error(found: Factors, W: torch.Tensor, H: torch.Tensor) -> float:
    return quadratic_error(SPLIT.from_blocks(found.A_PR @ found.B_RQ) - W, H)


def test_without_a_metric_it_is_the_truncated_svd_of_the_rearranged_weight() -> None:
    W = random(20, 18)
    dropped = torch.linalg.svdvals(SPLIT.to_blocks(W))[2:].square().sum()
    found = scaled_svd(W, torch.eye(18), SPLIT)
    assert error(found, W, torch.eye(18)) == pytest.approx(float(dropped), rel=1e-4)


def test_a_metric_that_is_a_kronecker_product_is_taken_apart() -> None:
    H1, H2 = gram(3), gram(6)
    found1, found2 = input_factors(torch.kron(H1, H2), SPLIT)
    torch.testing.assert_close(torch.kron(found1, found2).float(), torch.kron(H1, H2))


def test_in_such_a_metric_no_turn_finds_anything_better() -> None:
    W, H = random(20, 18), torch.kron(gram(3), gram(6))
    start = scaled_svd(W, H, SPLIT)
    first = error(start, W, H)
    assert error(refine(W, H, SPLIT, start, 5), W, H) == pytest.approx(first, rel=1e-3)


def test_the_error_never_rises() -> None:
    W, H = random(20, 18), gram()
    found, last = scaled_svd(W, H, SPLIT), float("inf")
    for _ in range(6):
        found = refine(W, H, SPLIT, found, 1)
        assert error(found, W, H) <= last * (1 + 1e-6)
        last = error(found, W, H)


def test_a_half_round_is_a_least_squares_problem() -> None:
    W, H = random(20, 18), gram()
    start = scaled_svd(W, H, SPLIT)
    aim, root = Aim.of(W, H, SPLIT), torch.linalg.cholesky(H.double())
    for solve, shape in ((solve_left, start.A_PR.shape), (solve_right, start.B_RQ.shape)):
        columns = []
        for unit in torch.eye(shape.numel()):
            part = unit.reshape(shape)
            blocks = part @ start.B_RQ if solve is solve_left else start.A_PR @ part
            columns.append((SPLIT.from_blocks(blocks).double() @ root).flatten())
        design = torch.stack(columns, dim=1)
        best = torch.linalg.lstsq(design, (W.double() @ root).flatten()).solution
        least = float((design @ best - (W.double() @ root).flatten()).square().sum())
        found = solve(aim, start, steps=60)
        changed = (found, start.B_RQ) if solve is solve_left else (start.A_PR, found)
        assert error(Factors(*changed), W, H) == pytest.approx(least, rel=1e-3)
