"""The certificate of coupled blocks: the card's example, and what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.small_gain import bounds, certify, margin, size, two_block_band

BLOCKS = (slice(0, 3), slice(3, 6))


def coupled() -> Tensor:
    """[[I, 10 R], [0.05 R^T, I]] with an orthogonal R."""
    draw = torch.Generator().manual_seed(0)
    R = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=torch.float64))[0]
    eye = torch.eye(3, dtype=torch.float64)
    return torch.cat([torch.cat([eye, 10 * R], 1), torch.cat([0.05 * R.T, eye], 1)])


def test_a_field_that_is_not_monotone_contracts_in_weighted_norms() -> None:
    J = coupled()
    assert torch.linalg.eigvalsh((J + J.T) / 2)[0] == pytest.approx(-4.025, abs=1e-3)
    mu, L = bounds(J, BLOCKS)
    w = torch.tensor([1.0, 200.0], dtype=torch.float64)
    assert margin(mu, L, w) == pytest.approx(0.293, abs=1e-3)
    assert size(J, BLOCKS, w) == pytest.approx(1.707, abs=1e-3)
    low, high = two_block_band(mu, L, 0.0) or (0.0, 0.0)
    assert (low, high) == pytest.approx((34.3, 1165.7), rel=1e-3)
    for ratio in (low, high):
        assert margin(mu, L, torch.tensor([1.0, ratio], dtype=torch.float64)) == pytest.approx(
            0.0, abs=1e-9
        )


def test_every_certified_step_contracts() -> None:
    J = coupled()
    found = certify(J, BLOCKS)
    assert found.certified
    assert found.alpha >= 0.292
    step = 0.95 * found.largest_step
    root = torch.ones(6, dtype=torch.float64)
    root[3:] = found.weights[1] ** 0.5
    x = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(50):
        following = x - step * J @ x
        left = (root * following).norm() / (root * x).norm()
        assert left <= found.factor(step) + 1e-12
        x = following
    assert found.factor(step) < 1


def test_no_certificate_without_a_margin() -> None:
    J = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    found = certify(J, (slice(0, 1), slice(1, 2)))
    assert not found.certified
    assert found.largest_step == 0.0
    assert two_block_band(*bounds(J, (slice(0, 1), slice(1, 2))), 0.0) is None


def test_three_blocks_are_weighted_by_search() -> None:
    J = torch.eye(3) + torch.tensor([[0.0, 4.0, 0.0], [0.05, 0.0, 4.0], [0.0, 0.05, 0.0]])
    blocks = tuple(slice(i, i + 1) for i in range(3))
    assert margin(*bounds(J.double(), blocks), torch.ones(3, dtype=torch.float64)) < 0
    assert certify(J, blocks).certified
