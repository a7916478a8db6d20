"""ARMOR's search: exact choices of groups, and the core's refit against least squares."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.block_diagonal import left_times, times_right
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped, exact_refit
from blockwright.numerics.masks import keep_n_of_m
from blockwright.numerics.wrapped_core import Search, Wrapped, best_pair, refit_core, regroup
from tests.layers import gram, synth_layer

LAYER = synth_layer(0, features=32, tokens=400)
H = gram(LAYER.X_TI)


def start(block: int = 8) -> Wrapped:
    """Wrappers near the identity."""
    mask = keep_n_of_m(LAYER.W_OI.abs() * H.diagonal().sqrt(), 2, 4)
    w = Wrapped.plain(LAYER.W_OI, mask, block)
    noise = torch.Generator().manual_seed(1)
    for wrapper in (w.A_JBB, w.B_KBB):
        wrapper.add_(torch.randn(wrapper.shape, generator=noise), alpha=0.2)
    return w


def proxy(weight: Tensor) -> float:
    return float(((weight - LAYER.W_OI).double().square() * H.diagonal()).sum())


def slope(w: Wrapped) -> Tensor:
    error = (w.weight() - LAYER.W_OI) * H.diagonal()
    return left_times(w.A_JBB.mT, times_right(error, w.B_KBB.mT))


def test_the_best_pair_is_the_least_squares_one_of_all_six() -> None:
    random = torch.Generator().manual_seed(0)
    root, y = torch.randn(4, 9, generator=random), torch.randn(4, generator=random)
    values, kept = best_pair(root @ root.T, y)
    gains = {}
    for pair in combinations(range(4), 2):
        some = list(pair)
        z = torch.linalg.solve((root @ root.T)[some][:, some], y[some])
        gains[pair] = (float(y[some] @ z), -z)
    best = max(gains, key=lambda pair: gains[pair][0])
    assert tuple(kept.nonzero()[:, 0].tolist()) == best
    torch.testing.assert_close(values[kept], gains[best][1], rtol=1e-4, atol=1e-5)


def test_choosing_groups_anew_never_raises_the_proxy_and_says_what_it_changed() -> None:
    w, generator = start(), torch.Generator().manual_seed(0)
    for _ in range(20):
        before, weight = proxy(w.weight()), w.weight()
        change = regroup(w, slope(w), H.diagonal(), generator)
        torch.testing.assert_close(w.weight() - weight, change, rtol=1e-3, atol=1e-4)
        assert proxy(w.weight()) <= before * (1 + 1e-6)
        assert (w.mask_OI.view(-1, 4).sum(1) == 2).all()
        assert ((w.C_OI != 0) <= w.mask_OI).all()


def test_a_search_ends_at_the_best_point_that_it_met() -> None:
    begin = start()
    search = Search(LAYER.W_OI, H.diagonal(), begin.clone(), 1e-3, torch.Generator().manual_seed(0))
    found = search.run(60)
    total = float((LAYER.W_OI.square() * H.diagonal()).sum())
    assert search.proxies[0] == pytest.approx(proxy(begin.weight()) / total, rel=1e-5)
    assert proxy(found.weight()) / total == pytest.approx(min(search.proxies), rel=1e-5)
    assert min(search.proxies) < 0.8 * search.proxies[0]


def test_the_refit_of_a_plain_core_is_the_masked_refit() -> None:
    w, Hd = start(), damped(H, 0.01)
    plain = Wrapped.plain(LAYER.W_OI, w.mask_OI, 8)
    found = refit_core(LAYER.W_OI, Hd, plain, 200)
    exact = exact_refit(LAYER.W_OI, Hd, w.mask_OI)
    errors = [quadratic_error(x - LAYER.W_OI, Hd) for x in (found, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_refit_of_a_wrapped_core_solves_the_normal_equations() -> None:
    w, Hd = start(), damped(H, 0.01)
    before = quadratic_error(w.weight() - LAYER.W_OI, Hd)
    w.C_OI = refit_core(LAYER.W_OI, Hd, w, 300)
    residual = (w.weight() - LAYER.W_OI) @ Hd
    pulled = left_times(w.A_JBB.mT, times_right(residual, w.B_KBB.mT)) * w.mask_OI
    right = left_times(w.A_JBB.mT, times_right(LAYER.W_OI @ Hd, w.B_KBB.mT)) * w.mask_OI
    assert pulled.norm() < 1e-2 * right.norm()
    assert quadratic_error(w.weight() - LAYER.W_OI, Hd) < 0.5 * before
    assert (w.C_OI[~w.mask_OI] == 0).all()
