"""Ranges: the rules that every grid obeys, and a search that is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.ranges import (
    SHRINKS,
    fit_offset,
    fit_range,
    quantize,
    search_offset,
    search_range,
)

BITS = range(2, 9)
both = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def rounded(W: Tensor, bits: int, scale: Tensor, zero_point: Tensor) -> Tensor:
    codes = quantize(W, scale[..., None], zero_point[..., None], 1 << bits)
    return (codes - zero_point[..., None]) * scale[..., None]


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@both
@pytest.mark.parametrize("bits", BITS)
def test_scales_are_bfloat16_and_zero_points_are_codes(bits: int, symmetric: bool) -> None:
    for shrink in (1.0, 0.8):
        scale, zero_point = fit_range(weights(64, 32), bits, symmetric, shrink)
        assert torch.equal(scale, scale.bfloat16().float())
        assert (scale > 0).all()
        assert torch.equal(zero_point, zero_point.round().clamp(0, (1 << bits) - 1))


@pytest.mark.parametrize("bits", BITS)
def test_min_max_ranges_follow_the_closed_form(bits: int) -> None:
    W = torch.tensor([[-1.0, 0.5, 3.0]])
    top, positive = (1 << bits) - 1, (1 << (bits - 1)) - 1
    scale, zero_point = fit_range(W, bits, symmetric=False)
    assert scale.item() == pytest.approx(4.0 / top, rel=2**-7)
    assert zero_point.item() == round(1.0 / scale.item())
    scale, zero_point = fit_range(W, bits, symmetric=True)
    assert scale.item() == torch.tensor(3.0 / positive).bfloat16().item()
    assert zero_point.item() == positive + 1


@both
@pytest.mark.parametrize("bits", BITS)
def test_rounding_twice_is_rounding_once(bits: int, symmetric: bool) -> None:
    shifted = weights(512, 16, seed=1) + 0.02 * torch.linspace(-1, 1, 512)[:, None]
    half_steps = torch.arange(-8, 8).float().expand(4, 16) / 2
    for W in (weights(512, 32), shifted, half_steps, weights(64, 2)):
        once = rounded(W, bits, *fit_range(W, bits, symmetric))
        assert torch.equal(rounded(once, bits, *fit_range(once, bits, symmetric)), once)


@both
@pytest.mark.parametrize("bits", BITS)
def test_zero_groups_and_constant_groups_are_exact(bits: int, symmetric: bool) -> None:
    values = torch.tensor([0.0, 0.75, -0.75, 1e-20, -3e30])
    W = values.bfloat16().float()[:, None].expand(-1, 32)
    for fit in (fit_range, search_range):
        scale, zero_point = fit(W, bits, symmetric)
        assert torch.equal(rounded(W, bits, scale, zero_point), W)
        assert scale[0] == 1


@both
def test_weights_too_small_for_a_scale_become_zero(symmetric: bool) -> None:
    W = torch.full((1, 8), 1e-44)
    scale, zero_point = fit_range(W * torch.arange(8), 8, symmetric)
    assert scale.item() == 1
    assert (rounded(W, 8, scale, zero_point) == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_zero_is_representable_in_ranges_of_one_sign(bits: int) -> None:
    for sign in (1, -1):
        W = sign * (1 + weights(8, 32).abs())
        scale, zero_point = fit_range(W, bits, symmetric=False)
        assert (rounded(torch.zeros(8, 1), bits, scale, zero_point) == 0).all()
        assert (zero_point == (0 if sign > 0 else (1 << bits) - 1)).all()


@both
@pytest.mark.parametrize("bits", BITS)
def test_errors_stay_within_half_a_step_inside_the_range(bits: int, symmetric: bool) -> None:
    W = weights(256, 64)
    scale, zero_point = (value[:, None] for value in fit_range(W, bits, symmetric))
    top = (1 << bits) - 1
    lowest, highest = -zero_point * scale, (top - zero_point) * scale
    inside = (lowest <= W) & (highest >= W)
    D = rounded(W, bits, scale[:, 0], zero_point[:, 0]) - W
    assert inside.float().mean() > 0.9
    assert ((D.abs() <= scale / 2 * (1 + 1e-5)) | ~inside).all()


@pytest.mark.parametrize("ties", [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0)])
def test_ties_go_to_even(ties: tuple[float, float]) -> None:
    value, expected = ties
    code = quantize(torch.tensor([value]), torch.ones(1), torch.full((1,), 8.0), 16)
    assert code.item() - 8 == expected


@both
@pytest.mark.parametrize("weighted", [False, True])
def test_search_is_the_exhaustive_minimum_over_all_shrinks(symmetric: bool, weighted: bool) -> None:
    W = weights(48, 3, 32)
    importance = weights(3, 32, seed=5).abs() if weighted else None
    factor = torch.ones(3, 32) if importance is None else importance
    errors = torch.stack(
        [
            ((rounded(W, 3, *fit_range(W, 3, symmetric, shrink)) - W).square() * factor).sum(-1)
            for shrink in SHRINKS
        ]
    )
    found = rounded(W, 3, *search_range(W, 3, symmetric, importance))
    assert torch.allclose(
        ((found - W).square() * factor).sum(-1), errors.min(0).values, rtol=1e-5, atol=0
    )
    assert SHRINKS[0] == 1
    assert SHRINKS[-1] == pytest.approx(0.6)


def test_search_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    W = weights(50, 2, 32)
    whole = search_range(W, 4, False)
    monkeypatch.setattr("blockwright.numerics.ranges.CHUNK_ELEMENTS", 200)
    for left, right in zip(search_range(W, 4, False), whole, strict=True):
        assert torch.equal(left, right)


def test_search_without_importance_keeps_the_whole_range_of_dead_inputs() -> None:
    W = weights(4, 1, 32)
    dead = search_range(W, 4, False, torch.zeros(1, 32))
    assert torch.equal(dead[0], fit_range(W, 4, False)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@both
def test_weights_that_are_not_finite_are_refused(bad: float, symmetric: bool) -> None:
    W = weights(4, 32)
    W[2, 7] = bad
    with pytest.raises(NumericalError, match="not finite"):
        fit_range(W, 4, symmetric)


@both
def test_inputs_are_unchanged(symmetric: bool) -> None:
    W = weights(8, 1, 32)
    before = W.clone()
    search_range(W, 4, symmetric, torch.ones(1, 32))
    assert torch.equal(W, before)


@pytest.mark.parametrize("bits", range(1, 9))
def test_offset_levels_are_fitted_again_alike_and_a_flat_group_is_its_value(bits: int) -> None:
    W = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    W[0], W[1] = 0.375, 0
    scale, offset = fit_offset(W, bits)
    center = 1 << (bits - 1)
    codes = quantize(W - offset[:, None], scale[:, None], center, 1 << bits)
    values = (codes - center) * scale[:, None] + offset[:, None]
    assert torch.equal(values[:2], W[:2])
    again_scale, again_offset = fit_offset(values, bits)
    assert torch.equal(again_scale, scale)
    assert torch.equal(again_offset, offset)


@pytest.mark.parametrize("importance", [None, weights(2, 16).abs()])
def test_searched_offsets_are_never_worse(importance: Tensor | None) -> None:
    W = torch.randn(20, 2, 16, generator=torch.Generator().manual_seed(0))
    errors = []
    for scale, offset in (fit_offset(W, 2), search_offset(W, 2, importance)):
        codes = quantize(W - offset[..., None], scale[..., None], 2, 4)
        D = (codes - 2) * scale[..., None] + offset[..., None] - W
        errors.append((D.square() if importance is None else D.square() * importance).sum(-1))
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.9 * errors[0].sum()
