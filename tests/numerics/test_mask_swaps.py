"""Swaps in a mask: exact changes of the error, and a greedy solver that ends where it should."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.mask_swaps import Swaps, best_swaps, move_costs
from blockwright.numerics.masks import keep_n_of_m, keep_per_row
from tests.layers import gram, synth_layer


def problem(inputs: int, rows: int = 1, pattern: int = 0, seed: int = 0) -> tuple[Swaps, Tensor]:
    """Eight panels of ``rows`` rows, and Wanda's mask of half (pruned = True)."""
    H = gram(synth_layer(seed, features=inputs, tokens=300).X_TI)
    W = torch.randn(8, rows, inputs, generator=torch.Generator().manual_seed(seed))
    score = W.square().sum(1) * H.diagonal()
    if pattern:
        return Swaps(W_PRI=W, H_II=H, pattern=pattern), ~keep_n_of_m(score, pattern // 2, pattern)
    return Swaps(W_PRI=W, H_II=H, pattern=pattern), ~keep_per_row(score, inputs // 2)


def error(swaps: Swaps, x_I: Tensor, panel: int) -> float:
    """E of one panel by its definition."""
    zeroed = swaps.W_PRI[panel].double() * x_I
    return float(((zeroed @ swaps.H_II.double()) * zeroed).sum()) / 2


@pytest.mark.parametrize("rows", [1, 3])
def test_single_moves_and_pairs_change_the_error_by_what_is_said(rows: int) -> None:
    swaps, x_PI = problem(12, rows)
    q = (swaps.W_PRI * x_PI[:, None]) @ swaps.H_II
    a = (swaps.W_PRI * q).sum(1)
    K = swaps.H_II * (swaps.W_PRI.mT @ swaps.W_PRI)
    costs = move_costs(K.diagonal(dim1=1, dim2=2), a, x_PI)
    for panel, x in enumerate(x_PI):
        before = error(swaps, x, panel)
        i, j = int(x.nonzero()[0]), int((~x).nonzero()[-1])
        for flipped, said in (
            ([i], costs[panel, i]),
            ([j], costs[panel, j]),
            ([i, j], costs[panel, i] + costs[panel, j] - K[panel, i, j]),
        ):
            changed = x.clone()
            changed[flipped] = ~changed[flipped]
            assert error(swaps, changed, panel) - before == pytest.approx(float(said), abs=1e-4)


@pytest.mark.parametrize(("rows", "pattern"), [(1, 0), (3, 0), (1, 4), (1, 8)])
def test_no_swap_inside_a_block_is_left(rows: int, pattern: int) -> None:
    """24 inputs are one block, so that the end is a minimum among all swaps."""
    swaps, x_PI = problem(24, rows, pattern)
    found = swaps.descend(x_PI, passes=50)
    assert torch.equal(found.sum(1), x_PI.sum(1))
    if pattern:
        assert (found.view(8, -1, pattern).sum(2) == pattern // 2).all()
    for panel, x in enumerate(found):
        least = error(swaps, x, panel)
        assert least <= error(swaps, x_PI[panel], panel) * (1 + 1e-6)
        for i, j in combinations(range(24), 2):
            if x[i] == x[j] or (pattern and i // pattern != j // pattern):
                continue
            swapped = x.clone()
            swapped[[i, j]] = ~swapped[[i, j]]
            assert error(swaps, swapped, panel) >= least * (1 - 1e-5)


def test_every_pass_lowers_the_error_and_blocks_smaller_than_the_row_get_far() -> None:
    swaps, x_PI = problem(192)
    errors = [swaps.errors(swaps.descend(x_PI, passes)) for passes in (1, 2, 5, 30)]
    assert torch.allclose(swaps.errors(x_PI)[0] / 2, torch.tensor(error(swaps, x_PI[0], 0)))
    for earlier, later in zip([swaps.errors(x_PI), *errors], errors, strict=False):
        assert (later <= earlier * (1 + 1e-6)).all()
    assert errors[-1].sum() < 0.6 * swaps.errors(x_PI).sum()


@pytest.mark.parametrize("kept", [3, 90])
def test_fewer_weights_than_half_a_block_are_no_trouble(kept: int) -> None:
    swaps, _ = problem(96)
    x_PI = ~keep_per_row(swaps.W_PRI.square().sum(1), kept)
    found = swaps.descend(x_PI, passes=5)
    assert ((~found).sum(1) == kept).all()
    assert (swaps.errors(found) <= swaps.errors(x_PI)).all()


def test_swaps_stop_when_none_gains_enough() -> None:
    swaps, x_PI = problem(12)
    a = (swaps.W_PRI * ((swaps.W_PRI * x_PI[:, None]) @ swaps.H_II)).sum(1)
    K = swaps.H_II * (swaps.W_PRI.mT @ swaps.W_PRI)
    anything = torch.ones(8, 12, 12, dtype=torch.bool)
    assert torch.equal(best_swaps(K, a, x_PI, anything, torch.full((8,), 1e9)), x_PI)
    assert torch.equal(best_swaps(K, a, x_PI, ~anything, torch.zeros(8)), x_PI)
    assert not torch.equal(best_swaps(K, a, x_PI, anything, torch.zeros(8)), x_PI)
