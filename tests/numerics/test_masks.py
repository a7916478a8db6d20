"""Masks: exact counts, best scores, ties to the lowest index."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from blockwright.errors import NumericalError
from blockwright.numerics.masks import (
    keep_in_matrix,
    keep_n_of_m,
    keep_per_row,
    keep_units,
    kept_columns,
)


def scores(rows: int, columns: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_no_other_mask_of_a_row_has_a_larger_score(kept: int) -> None:
    S = scores(5, 6)
    mask = keep_per_row(S, kept)
    assert (mask.sum(1) == kept).all()
    best = [max(sum(row[j] for j in each) for each in combinations(range(6), kept)) for row in S]
    assert torch.allclose((S * mask).sum(1), torch.tensor([float(x) for x in best]))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (15, 16)])
def test_every_group_keeps_its_best(n: int, m: int) -> None:
    S = scores(7, 48)
    groups = keep_n_of_m(S, n, m).view(-1, m)
    assert (groups.sum(1) == n).all()
    assert torch.equal(groups, keep_per_row(S.view(-1, m), n))


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (2, 3), (4, 2), (1, 1)])
def test_no_other_units_of_a_panel_have_larger_squares(rows: int, columns: int) -> None:
    S = scores(7, 6) - 0.5
    mask = keep_units(S, 1, rows, columns)
    for start in range(0, 7, rows):
        panel, kept = S[start : start + rows], mask[start : start + rows]
        assert (kept == kept[:1]).all()
        units = panel.square().view(len(panel), -1, columns).sum((0, 2))
        assert kept[0].view(-1, columns).any(1).int().argmax() == units.argmax()
        assert int(kept[0].sum()) == columns
    if rows == columns == 1:
        assert torch.equal(mask, keep_per_row(S.abs(), 1))
    with pytest.raises(ValueError, match="whole units of 4"):
        keep_units(S, 1, rows, 4)


def test_ties_go_to_the_lowest_index() -> None:
    assert keep_per_row(torch.ones(1, 5), 2).tolist() == [[True, True, False, False, False]]
    assert keep_n_of_m(torch.zeros(1, 4), 2, 4).tolist() == [[True, True, False, False]]


def test_a_matrix_may_keep_unequal_numbers_per_row() -> None:
    S = torch.tensor([[4.0, 3.0], [1.0, 2.0]])
    assert keep_in_matrix(S, 2).tolist() == [[True, True], [False, False]]


def test_kept_columns_rise_and_are_those_of_the_mask() -> None:
    mask = keep_per_row(scores(9, 20), 7)
    columns = kept_columns(mask, 7)
    assert (columns.diff(dim=1) > 0).all()
    assert torch.equal(torch.zeros_like(mask).scatter(1, columns, True), mask)


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(NumericalError, match="not a number"):
        keep_per_row(torch.tensor([[1.0, float("nan")]]), 1)


def test_a_rest_is_refused() -> None:
    with pytest.raises(ValueError, match="whole groups of 4"):
        keep_n_of_m(scores(1, 6), 2, 4)
