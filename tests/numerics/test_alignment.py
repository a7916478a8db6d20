"""Units are found again in whatever order they stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.alignment import matched_units, unit_correlations


def activations(units: int, columns: int, seed: int = 0) -> Tensor:
    """[200, units, columns]"""
    return torch.randn(200, units, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [1, 4])
def test_correlations_are_those_of_numpys_definition(columns: int) -> None:
    a, b = activations(3, columns), activations(3, columns, seed=1)
    found = unit_correlations(a.flatten(1), b.flatten(1), columns)
    for one in range(3):
        for other in range(3):
            pairs = [
                torch.corrcoef(torch.stack([a[:, one, k], b[:, other, k]]))[0, 1]
                for k in range(columns)
            ]
            assert found[one, other].item() == pytest.approx(float(sum(pairs)) / columns, abs=1e-5)


@pytest.mark.parametrize("columns", [1, 4])
def test_an_order_is_found_again_behind_noise_scales_and_dead_units(columns: int) -> None:
    a = activations(24, columns)
    a[:, 5] = 0.0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    b = torch.empty_like(a)
    b[:, order] = a * torch.linspace(0.5, 3, 24)[:, None] + 1.0
    b += 0.3 * activations(24, columns, seed=2) * (b.std(0) > 0)
    Cr = unit_correlations(a.flatten(1), b.flatten(1), columns)
    assert matched_units(Cr) == order.tolist()
    assert not Cr[5].any()
