"""Block coordinate descent: the rules' guarantees, on quadratics."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.block_descent import (
    Rule,
    forest_solve,
    progress,
    sorted_blocks,
    step,
    variable_block,
)


def quadratic(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """H, positive definite, and a gradient, in float64."""
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(size, size, generator=random, dtype=torch.float64)
    scale = torch.randn(size, generator=random, dtype=torch.float64).exp()
    H = scale[:, None] * (A @ A.T / size + 0.1 * torch.eye(size)) * scale
    return H, torch.randn(size, generator=random, dtype=torch.float64)


def decrease(H: Tensor, g: Tensor, block: Tensor, change: Tensor) -> float:
    """f(x) - f(x + change), from the gradient before."""
    return -float(g[block] @ change + change @ H[block[:, None], block] @ change / 2)


@pytest.mark.parametrize("seed", range(3))
def test_an_exact_step_gains_half_of_what_gsq_says_and_no_other_rule_promises_more(
    seed: int,
) -> None:
    H, g = quadratic(seed)
    blocks = torch.arange(12).view(4, 3)
    said = progress(Rule.GSQ, H, g, blocks)
    for b, block in enumerate(blocks):
        change = step(H, g.clone(), block)
        assert decrease(H, g, block, change) == pytest.approx(float(said[b]) / 2, rel=1e-9)
    for rule in (Rule.GSL, Rule.GSD):
        assert (progress(rule, H, g, blocks) <= said * (1 + 1e-9)).all()


def test_a_step_keeps_the_gradient_current() -> None:
    H, g = quadratic(0)
    x, before, block = torch.zeros(12, dtype=torch.float64), g.clone(), torch.tensor([2, 7, 9])
    x[block] += step(H, g, block)
    assert torch.allclose(g, before + H @ x)
    assert g[block].abs().max() < 1e-12


def test_gauss_southwell_takes_the_largest_gradient() -> None:
    H, g = quadratic(1)
    blocks = sorted_blocks(H.diagonal(), 4)
    found = progress(Rule.GS, H, g, blocks)
    assert torch.allclose(found.sqrt(), g[blocks].norm(dim=1))
    assert sorted(blocks.flatten().tolist()) == list(range(12))
    assert (H.diagonal()[blocks].flatten().diff() >= 0).all()
    with pytest.raises(ValueError, match="not whole blocks of 5"):
        sorted_blocks(H.diagonal(), 5)


def test_no_other_block_of_the_size_has_more_progress() -> None:
    H, g = quadratic(2, 8)
    each = g.square() / H.diagonal()
    chosen = variable_block(each, 3)
    best = max(float(each[list(some)].sum()) for some in combinations(range(8), 3))
    assert float(each[chosen].sum()) == pytest.approx(best)
    rows = torch.stack((each, each.flip(0)))
    assert torch.equal(variable_block(rows, 3)[0], chosen)


@pytest.mark.parametrize("seed", range(4))
def test_message_passing_solves_forests(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    H = torch.eye(15, dtype=torch.float64) * 4
    for node in range(1, 15):
        if node % 6:  # three trees
            parent = int(torch.randint(node - node % 6, node, (1,), generator=random))
            H[node, parent] = H[parent, node] = torch.randn(1, generator=random).item()
    right = torch.randn(15, generator=random, dtype=torch.float64)
    mixed = torch.randperm(15, generator=random)
    H, right = H[mixed[:, None], mixed], right[mixed]
    assert torch.allclose(forest_solve(H, right), torch.linalg.solve(H, right))


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="no forest"):
        forest_solve(torch.ones(3, 3) + torch.eye(3), torch.ones(3))
