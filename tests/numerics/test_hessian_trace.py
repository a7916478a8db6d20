"""Traces of Hessians by probes, and what they charge a change with."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.hessian_trace import hutchinson_trace, moment_trace, trace_cost


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_probes_are_within_their_error_of_the_trace() -> None:
    B = torch.randn(40, 40, generator=generator())
    A = B @ B.T
    trace, error = hutchinson_trace(lambda v: A @ v, (40,), generator=generator(), most=200)
    assert error <= 0.05 * trace
    assert abs(trace - float(A.trace())) < 4 * error


def test_a_diagonal_is_exact_after_three_probes_and_a_hard_one_ends() -> None:
    h = torch.rand(2, 30, generator=generator())
    trace, error = hutchinson_trace(lambda v: h * v, (2, 30), generator=generator())
    assert trace == pytest.approx(float(h.sum()), rel=1e-6)
    assert error == pytest.approx(0, abs=1e-5)
    skew = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    trace, error = hutchinson_trace(lambda v: skew @ v, (2,), generator=generator(), most=7)
    assert error > 0


def test_moments_give_the_trace_of_their_product_and_its_mean_eigenvalue_the_cost() -> None:
    H = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    G = torch.tensor([0.5, 1.5])
    trace = moment_trace(H, G)
    assert trace == pytest.approx(float(torch.kron(torch.diag(G), H).trace()))
    D = torch.full((2, 3), 0.1)
    assert trace_cost(D, trace) == pytest.approx(0.5 * trace / 6 * 0.06)
