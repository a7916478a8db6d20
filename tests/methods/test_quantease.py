"""QuantEase: its parts are proved in ``numerics``; here how they are put together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.gptq import Gptq
from blockwright.methods.quantize.quantease import QuantEase
from blockwright.numerics.inverse_hessian import damped
from blockwright.numerics.losses import row_errors
from blockwright.registry import format_named
from blockwright.types import Statistics
from tests.layers import outlier_layer

LAYER = outlier_layer(0, 24, 128, 500)


def solved(format: str, **options: int) -> Tensor:
    method = QuantEase(**options, unbiased=False)
    return method.solve(LAYER.W_OI, LAYER.statistics, format_named(format)).weight()


@pytest.mark.parametrize("format", ["int2-g32", "int3-g64-sym", "int4-row"])
def test_without_rounds_and_passes_it_is_gptq(format: str) -> None:
    found = solved(format, rounds=0, passes=0)
    gptq = Gptq().solve(LAYER.W_OI, LAYER.statistics, format_named(format)).weight()
    assert torch.equal(found, gptq)


@pytest.mark.parametrize("format", ["int2-g32", "int3-g64-sym", "int4-row"])
def test_rounds_and_passes_each_lower_the_error_of_some_rows_and_raise_none(format: str) -> None:
    gram = LAYER.statistics.input_gram
    assert gram is not None
    errors = [
        row_errors(solved(format, rounds=rounds, passes=passes) - LAYER.W_OI, damped(gram, 0.01))
        for rounds, passes in ((0, 0), (1, 0), (1, 1), (1, 3))
    ]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert errors[-1].sum() < errors[0].sum()


def test_a_row_of_zeros_and_a_dead_input_stay() -> None:
    W_OI, X_TI = LAYER.W_OI.clone(), LAYER.X_TI.clone()
    W_OI[3] = 0
    X_TI[:, 5] = 0
    statistics = Statistics(tokens=len(X_TI), input_gram=X_TI.T @ X_TI / len(X_TI))
    found = QuantEase().solve(W_OI, statistics, format_named("int3-g64")).weight()
    assert torch.equal(found[3], torch.zeros(128))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "options", [{"rounds": -1}, {"passes": -1}, {"damping": 0.0}, {"damping": float("inf")}]
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(CandidateError, match=f"option quantease@{next(iter(options))}"):
        QuantEase(**options)  # type: ignore[arg-type]


def test_without_tokens_there_is_no_solution() -> None:
    statistics = Statistics(tokens=0, input_gram=torch.zeros(128, 128))
    with pytest.raises(NumericalError, match="no calibration token"):
        QuantEase().solve(LAYER.W_OI, statistics, format_named("int3-g64"))
