"""Normalized singular values and the threshold over several weights."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.spectra import normalized, rank_above, threshold_for


def test_the_largest_is_one_and_the_smallest_zero() -> None:
    assert normalized(torch.tensor([9.0, 5.0, 1.0])).tolist() == [1.0, 0.5, 0.0]
    assert normalized(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_quantile_keeps_one_outlier_from_pressing_the_others_down() -> None:
    sigma = torch.cat([torch.tensor([100.0]), torch.linspace(2, 1, 9)])
    assert rank_above(normalized(sigma), 0.5) == 1
    assert rank_above(normalized(sigma, quantile=0.8), 0.5) > 4


@pytest.mark.parametrize("reduction", [0.0, 0.1, 0.5, 0.9])
def test_the_threshold_leaves_out_the_share_that_was_asked_for(reduction: float) -> None:
    random = torch.Generator().manual_seed(0)
    spectra = [normalized(torch.rand(size, generator=random)) for size in (40, 100, 60)]
    threshold = threshold_for(spectra, reduction)
    left = sum(rank_above(spectrum, threshold) for spectrum in spectra)
    assert left == round(200 * (1 - reduction))


def test_costs_make_it_a_share_of_the_stored_numbers() -> None:
    spectra = [torch.tensor([1.0, 0.4, 0.0]), torch.tensor([1.0, 0.6, 0.0])]
    costs = [10.0, 1.0]
    threshold = threshold_for(spectra, 20 / 33, costs)
    kept = sum(c * rank_above(s, threshold) for s, c in zip(spectra, costs, strict=True))
    assert kept <= 33 - 20
    with pytest.raises(ValueError, match="give 0 to 1"):
        threshold_for(spectra, 1.5)
    assert threshold_for(spectra, 1.0) == float("inf")
