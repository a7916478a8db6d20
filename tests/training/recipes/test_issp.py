"""ISS-P: soft shrinkage, then a mask."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training.recipes.issp import Issp, SoftlyShrunk
from tests.training.cases import at, matrix_of, normal, trained


def issp(**options: object) -> SoftlyShrunk:
    matrix = matrix_of(Issp(**options), normal(6, 20))  # type: ignore[arg-type]
    assert isinstance(matrix, SoftlyShrunk)
    return matrix


@torch.no_grad()
def test_the_smallest_shrink_and_the_others_stay() -> None:
    matrix = issp(factor=0.9)
    W = matrix.weight.clone()
    matrix.after_step(at(3), {})
    order = W.abs().argsort(dim=1)
    small = torch.zeros_like(W, dtype=torch.bool).scatter_(1, order[:, :14], True)
    assert torch.equal(matrix.weight, torch.where(small, W * 0.9, W))


def test_without_shrinking_training_is_plain_until_the_cut() -> None:
    steps, cut = 10, 0.95  # rounds to all steps: no step has a fixed mask
    plain, _ = trained(None, steps=steps)
    mine, _ = trained(f"issp@factor=1,soft={cut}", steps=steps)
    for name, parameter in mine.named_parameters():
        expected = plain.get_parameter(name)
        kept = parameter != 0
        assert torch.equal(parameter[kept], expected[kept]), name


@torch.no_grad()
def test_zeros_stay_zero_and_their_number_is_exact() -> None:
    matrix = issp()
    matrix.before_step(at(75))
    mask = matrix.mask_OI.clone()
    assert (mask.sum(1) == 6).all()
    matrix.weight.grad = torch.ones(6, 20)
    matrix.after_backward(at(75))
    assert torch.equal(matrix.weight.grad, mask.float())
    matrix.weight.add_(1.0)
    moments = {"exp_avg": torch.ones(6, 20)}
    matrix.after_step(at(76), moments)
    assert torch.equal(matrix.weight != 0, mask)
    assert torch.equal(moments["exp_avg"], mask.float())


def test_short_runs_shrink_faster() -> None:
    assert Issp().factor_of(at(0, 1000)) == 0.95
    assert Issp().factor_of(at(0, 40)) == pytest.approx(0.01 ** (1 / 30))
    assert Issp().factor_of(at(0, 4)) == 0.8
    assert Issp(factor=0.7).factor_of(at(0, 4)) == 0.7


def test_options_out_of_range_are_refused() -> None:
    for wrong in ("issp@soft=1", "issp@factor=2"):
        with pytest.raises(TrainingError, match="soft"):
            recipe_named(wrong)
