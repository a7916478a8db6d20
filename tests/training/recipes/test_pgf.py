"""Progressive gradient flow: what is pruned fades."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import TrainingError
from blockwright.registry import recipe_named
from blockwright.training.recipes.pgf import Pgf, PgfMatrix, fading, ladder
from tests.training.cases import at, matrix_of, normal


def pgf(**options: object) -> PgfMatrix:
    matrix = matrix_of(Pgf(**options), normal(6, 16))  # type: ignore[arg-type]
    assert isinstance(matrix, PgfMatrix)
    return matrix


@pytest.mark.parametrize("decay", ["linear", "exponential", "structure"])
def test_it_begins_dense_and_ends_masked(decay: str) -> None:
    matrix = pgf(decay=decay, format="sparse1of8")
    W = matrix.weight.detach().clone()
    for step in (0, 9):
        matrix.before_step(at(step))
        assert torch.equal(matrix.used_weight(), W)
    matrix.before_step(at(80))
    used = matrix.used_weight()
    assert (used.reshape(6, 2, 8).count_nonzero(dim=2) == 1).all()
    assert torch.equal(used, W * matrix.mask_OI)


def test_between_it_is_the_mask_plus_beta_and_so_is_its_gradient() -> None:
    matrix = pgf(decay="linear")
    matrix.before_step(at(45))
    assert matrix.beta == pytest.approx(0.5)
    gate = matrix.mask_OI + 0.5 * ~matrix.mask_OI
    assert torch.allclose(matrix.used_weight(), matrix.weight * gate)
    matrix.used_weight().sum().backward()
    assert matrix.weight.grad is not None
    assert torch.allclose(matrix.weight.grad, gate)


def test_the_fixed_mask_stays_and_what_it_cuts_is_forgotten() -> None:
    matrix = pgf()
    matrix.before_step(at(80))
    before = matrix.mask_OI.clone()
    with torch.no_grad():
        matrix.weight.copy_(normal(6, 16, seed=9))
    matrix.before_step(at(81))
    assert torch.equal(matrix.mask_OI, before)
    moments = {"exp_avg": torch.ones(6, 16)}
    with torch.no_grad():
        matrix.after_step(at(81), moments)
    assert torch.equal(moments["exp_avg"], before.float())
    assert not matrix.weight[~before].any()


def test_fading_falls_from_one_to_zero() -> None:
    for decay in ("linear", "exponential"):
        values = [fading(share / 10, decay) for share in range(11)]
        assert (values[0], values[-1]) == (1.0, 0.0)
        assert values == sorted(values, reverse=True)


def test_the_pattern_goes_down_by_halves() -> None:
    assert ladder(1, 8) == [7, 4, 2, 1]
    assert ladder(2, 4) == [3, 2]
    assert ladder(3, 4) == [3]
    assert ladder(3, 16) == [15, 8, 4, 3]
    matrix = pgf(decay="structure")
    kept = []
    for step in range(10, 80, 10):
        matrix.before_step(at(step))
        kept.append(int(matrix.mask_OI[0, :8].sum()))
    assert kept == [7, 7, 4, 4, 2, 2, 1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TrainingError, match="allowed: linear, exponential, structure"):
        recipe_named("pgf@decay=cosine")
    with pytest.raises(TrainingError, match="N of M"):
        recipe_named("pgf@decay=structure,format=sparse70")
    with pytest.raises(TrainingError, match="together at most 1"):
        recipe_named("pgf@dense=0.9,fixed=0.2")
