"""Puzzle: channels are removed one at a time by what is missed most."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.width.puzzle import Puzzle, eliminate, eliminate_fitted
from blockwright.numerics.losses import quadratic_error
from blockwright.types import Statistics


def activations(seed: int, channels: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels // 2, channels, generator=draw)
    few = torch.randn(200, channels // 2, generator=draw)
    return few @ mixing + 0.3 * torch.randn(200, channels, generator=draw)


def weight(seed: int, channels: int = 8) -> Tensor:
    return torch.randn(5, channels, generator=torch.Generator().manual_seed(seed + 50))


def seen(a_TI: Tensor) -> Statistics:
    return Statistics(tokens=len(a_TI), input_gram=a_TI.T @ a_TI / len(a_TI))


def missed(a_TI: Tensor, W_OI: Tensor, removed: list[int]) -> float:
    """E|s|^2, s = what the removed channels gave: from the tokens."""
    return float((a_TI[:, removed] @ W_OI[:, removed].T).square().sum(1).mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_next_is_the_one_with_which_the_error_grows_least(seed: int) -> None:
    a, W = activations(seed), weight(seed)
    Q = (a.T @ a / len(a)).double() * (W.T @ W).double()
    order, removed = eliminate(Q, 6), list[int]()
    for channel in order:
        left = [j for j in range(8) if j not in removed]
        assert channel == min(left, key=lambda j: missed(a, W, [*removed, j]))
        removed.append(channel)


@pytest.mark.parametrize("columns", [1, 2])
def test_fitted_the_next_is_the_one_that_the_others_replace_best(columns: int) -> None:
    a, W = activations(2).double(), weight(2).double()
    C = a.T @ a / len(a)
    groups = [list(range(g, g + columns)) for g in range(0, 8, columns)]

    def left_over(gone: list[int]) -> float:
        stays = [j for g, group in enumerate(groups) if g not in gone for j in group]
        fitted = torch.linalg.lstsq(a[:, stays], a @ W.T).solution
        return float((a[:, stays] @ fitted - a @ W.T).square().sum(1).mean())

    removed = list[int]()
    for channel in eliminate_fitted(W, C, len(groups) - 1, columns, 1e-9):
        others = [g for g in range(len(groups)) if g not in removed]
        assert channel == min(others, key=lambda g: left_over([*removed, g]))
        removed.append(channel)


@pytest.mark.parametrize("seed", range(4))
def test_one_by_one_is_near_the_best_of_all_subsets(seed: int) -> None:
    a, W = activations(seed), weight(seed)
    kept, _ = Puzzle(refit=False).narrow(W, seen(a), 5)
    mine = missed(a, W, [j for j in range(8) if j not in kept.tolist()])
    best = min(missed(a, W, list(gone)) for gone in combinations(range(8), 3))
    alone = sorted(range(8), key=lambda j: missed(a, W, [j]))[:3]
    assert best - 1e-6 <= mine <= max(missed(a, W, alone), best) * (1 + 1e-6)


def test_the_fit_lowers_the_error_and_all_channels_change_nothing() -> None:
    a, W = activations(0), weight(0)
    H = seen(a).input_gram
    assert H is not None
    errors = []
    for refit in (True, False):
        kept, W_OK = Puzzle(refit=refit).narrow(W, seen(a), 5)
        found = torch.zeros_like(W).index_copy_(1, kept, W_OK)
        errors.append(quadratic_error(found - W, H))
    assert errors[0] < errors[1]
    kept, same = Puzzle().narrow(W, seen(a), 8)
    assert kept.tolist() == list(range(8))
    torch.testing.assert_close(same, W)


def test_many_go_some_at_a_time() -> None:
    a, W = activations(3, channels=400), weight(3, channels=400)
    C = (a.T @ a / len(a)).double()
    removed = eliminate_fitted(W.double(), C, 300, 1, 0.01 * float(C.diagonal().mean()))
    assert len(set(removed)) == 300


def test_columns_of_a_head_go_together() -> None:
    a, W = activations(1), weight(1)
    kept, W_OK = Puzzle().narrow(W, seen(a), 2, columns=2)
    assert kept.shape == (2,)
    assert W_OK.shape == (5, 4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(NumericalError, match="NaN"):
        Puzzle().narrow(torch.full((5, 8), torch.nan), seen(activations(0)), 5)
    with pytest.raises(CandidateError, match="steps must not be negative"):
        Puzzle(steps=-1)
