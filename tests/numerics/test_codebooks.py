"""Codebooks: codes are of the nearest values, scales reach the outermost weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.codebooks import Codebook, dynamic_codebook, fit_scale, search_scale

RISING = Codebook((-1.0, -0.4, 0.0, 0.1, 0.5, 1.0))
SHUFFLED = Codebook((0.5, 0.0, -1.0, 1.0, 0.1, -0.4))
TWICE = Codebook((0.0, 1.0, 2.0, 0.0, -1.0, -2.0))
UNEVEN = Codebook((-0.5, 0.0, 2.0))


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("codebook", [RISING, SHUFFLED, TWICE, dynamic_codebook(signed=True)])
def test_no_other_value_is_nearer(codebook: Codebook) -> None:
    x = weights(40, 50)
    values = torch.tensor(codebook.values)
    least = (x[..., None] - values).abs().amin(-1)
    codes = codebook.encode(x)
    assert codes.dtype == torch.uint8
    torch.testing.assert_close((codebook.decode(codes) - x).abs(), least, rtol=0, atol=1e-6)


@pytest.mark.parametrize("codebook", [RISING, SHUFFLED, dynamic_codebook(signed=False)])
def test_values_are_their_own_codes(codebook: Codebook) -> None:
    codes = torch.arange(len(codebook.values)).to(torch.uint8)
    assert torch.equal(codebook.encode(codebook.decode(codes)), codes)


def test_the_codes_order_changes_no_value_and_equal_values_take_the_first_code() -> None:
    x = weights(30)
    assert torch.equal(RISING.decode(RISING.encode(x)), SHUFFLED.decode(SHUFFLED.encode(x)))
    assert torch.equal(TWICE.encode(torch.zeros(3)), torch.zeros(3, dtype=torch.uint8))
    assert TWICE.decode(torch.tensor([3], dtype=torch.uint8)) == 0


def test_a_tie_takes_the_lower_value() -> None:
    assert RISING.decode(RISING.encode(torch.tensor([0.75, -0.7]))).tolist() == [0.5, -1.0]


@pytest.mark.parametrize("values", [(0.0,), (1.0, 2.0), tuple(float(i) for i in range(257))])
def test_codebooks_that_cannot_be_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one of them 0"):
        Codebook(values)


def test_scales_map_the_outermost_values_on_the_outermost_weights() -> None:
    W = torch.tensor([[-0.5, 0.25], [0.25, 1.0], [-4.0, 4.0], [0.0, 0.0]])
    assert fit_scale(W, UNEVEN).tolist() == [1.0, 0.5, 8.0, 1.0]
    assert fit_scale(W, UNEVEN, shrink=0.5).tolist() == [0.5, 0.25, 4.0, 1.0]


@pytest.mark.parametrize("codebook", [RISING, UNEVEN, dynamic_codebook(signed=True)])
def test_decoded_weights_are_fitted_by_the_same_scale(codebook: Codebook) -> None:
    W = weights(4000, 32)
    scale = fit_scale(W, codebook)
    values = codebook.decode(codebook.encode(W / scale[:, None])) * scale[:, None]
    assert torch.equal(fit_scale(values, codebook), scale)
    assert torch.equal(scale.bfloat16().float(), scale)


@pytest.mark.parametrize("value", [0.375, -0.375])
def test_a_group_of_one_value_is_exact(value: float) -> None:
    W = torch.full((1, 8), value)
    scale = fit_scale(W, RISING)
    assert torch.equal(RISING.decode(RISING.encode(W / scale[:, None])) * scale[:, None], W)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    W = weights(3, 8)
    W[1, 2] = value
    with pytest.raises(NumericalError, match="not finite"):
        fit_scale(W, RISING)


def test_a_searched_scale_is_the_best_of_the_shrunken_ones() -> None:
    W, importance = weights(5, 3, 16), weights(3, 16, seed=1).abs()
    found = search_scale(W, RISING, importance)
    for row in range(5):
        for group in range(3):
            w = W[row, group]
            tried = [fit_scale(w, RISING, 1 - 0.02 * step) for step in range(21)]
            errors = [
                ((RISING.decode(RISING.encode(w / s)) * s - w).square() * importance[group]).sum()
                for s in tried
            ]
            assert found[row, group] == tried[int(torch.stack(errors).argmin())]


def test_the_dynamic_type_has_256_values_over_seven_decades() -> None:
    signed, unsigned = dynamic_codebook(signed=True), dynamic_codebook(signed=False)
    for codebook in (signed, unsigned):
        assert len(codebook.values) == 256
        assert list(codebook.values) == sorted(codebook.values)
        assert max(codebook.values) == 1.0
    assert min(signed.values) == pytest.approx(-0.99296875)
    assert min(value for value in signed.values if value > 0) == pytest.approx(0.55e-6)
    assert min(unsigned.values) == 0.0
    decades = [
        sum(10.0**-d > value > 10.0 ** -(d + 1) for value in signed.values) for d in range(7)
    ]
    assert decades == [64, 32, 16, 8, 4, 2, 1]
