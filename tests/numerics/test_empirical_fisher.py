"""The matrix-free inverse: the dense one, the paper's recursion, and optimal removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.empirical_fisher import EmpiricalFisher

RIDGE = 0.05


def gradients(M: int = 32, D: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(G: Tensor) -> Tensor:
    """F"""
    return RIDGE * torch.eye(G.shape[1], dtype=G.dtype) + G.T @ G / len(G)


def recursion(G: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's v_k and their denominators."""
    vectors: list[Tensor] = []
    denominators: list[Tensor] = []
    for g in G:
        v = g / RIDGE
        for other, denominator in zip(vectors, denominators, strict=True):
            v = v - (other @ g) / denominator * other
        vectors.append(v)
        denominators.append(len(G) + g @ v)
    return torch.stack(vectors), torch.stack(denominators)


@pytest.mark.parametrize("D", [16, 64, 256])
def test_products_and_diagonal_are_those_of_the_dense_inverse_and_of_the_recursion(D: int) -> None:
    G, x = gradients(D=D), gradients(3, D, seed=1)
    fisher, inverse = EmpiricalFisher.of(G, RIDGE), torch.linalg.inv(dense(G))
    V, denominators = recursion(G)
    torch.testing.assert_close(fisher.product(x), x @ inverse)
    torch.testing.assert_close(fisher.product(x), x / RIDGE - ((x @ V.T) / denominators) @ V)
    torch.testing.assert_close(fisher.diagonal(), inverse.diagonal())
    by_recursion = 1 / RIDGE - (V.square() / denominators[:, None]).sum(0)
    torch.testing.assert_close(fisher.diagonal(), by_recursion)


def test_one_step_lands_on_the_minimum_of_its_quadratic() -> None:
    G, best = gradients(), gradients(1, seed=2)
    x = gradients(1, seed=3)
    step = EmpiricalFisher.of(G, RIDGE).product((x - best) @ dense(G))
    torch.testing.assert_close(x - step, best, rtol=1e-5, atol=1e-8)


def test_removal_is_the_least_harm_by_lagrange() -> None:
    G, w = gradients(), gradients(5, seed=4)
    gone = gradients(5, seed=5) > 0.3
    found = EmpiricalFisher.of(G, RIDGE).removed(w, gone)
    F = dense(G)
    for row, target, lost in zip(found, w, gone, strict=True):
        kept = ~lost  # least squares on what is kept: F_KK d_K = F_KQ w_Q
        best = target[kept] + torch.linalg.solve(F[kept][:, kept], F[kept][:, lost] @ target[lost])
        torch.testing.assert_close(row[kept], best, rtol=1e-2, atol=1e-3)
        assert (row[lost] == 0).all()


@pytest.mark.parametrize("G", [torch.zeros(0, 4), torch.full((2, 4), float("nan"))])
def test_what_is_no_gradient_is_refused(G: Tensor) -> None:
    with pytest.raises(NumericalError, match="missing, or not finite"):
        EmpiricalFisher.of(G, RIDGE)
