"""Low rank plus quantized."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.lqlora import LEAST_SHARE, Lqlora, nearest_product
from blockwright.numerics.losses import row_errors
from blockwright.registry import format_named
from blockwright.types import GridSumFormat, Statistic, Statistics
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=48, in_features=64, tokens=300)


def summed(name: str) -> GridSumFormat:
    format = format_named(name)
    assert isinstance(format, GridSumFormat)
    return format


def seen(layer: Layer, G_O: torch.Tensor) -> Statistics:
    gram = layer.statistics.need(Statistic.INPUT_GRAM)
    return Statistics(tokens=300, input_gram=gram, output_gradient=G_O)


def test_the_product_is_the_truncated_svd_between_the_weights_of_rows_and_columns(
    layer: Layer,
) -> None:
    """a (W - Q) c by torch's own SVD, factors divided back (section 3.3)."""
    a = torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.1
    c = torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.1
    format = summed("nf3-g32&rank-r8")
    U, S, Vh = torch.linalg.svd(a[:, None] * layer.W_OI * c)
    expected = (U[:, :8] * S[:8] @ Vh[:8]) / a[:, None] / c
    found = nearest_product(layer.W_OI, a, c.square().diag(), format).weight()
    assert (found - expected).norm() < 1e-2 * expected.norm()  # factors in bfloat16


@pytest.mark.parametrize("metric", ["gram", "fisher", "weight"])
def test_it_is_never_worse_than_rounding_alone_in_its_metric(layer: Layer, metric: str) -> None:
    method = Lqlora(metric=metric)  # type: ignore[arg-type]
    statistics = seen(layer, torch.rand(48, generator=torch.Generator().manual_seed(3)))
    a_O, M_II = method.metric_of(layer.W_OI, statistics)
    for name in ("nf2-g32&rank-r4", "nf4-g64&rank-r1", "dyn8-g64&rank-r2"):
        format = summed(name)
        solution = method.solve(layer.W_OI, statistics, format)
        errors = [
            float(row_errors((W_hat - layer.W_OI) * a_O[:, None], M_II).sum())
            for W_hat in (solution.weight(), format.base.nearest(layer.W_OI).weight())
        ]
        assert errors[0] <= errors[1] * (1 + 1e-6)


def test_more_turns_are_never_worse(layer: Layer) -> None:
    format, H = summed("nf2-g32&rank-r8"), layer.statistics.need(Statistic.INPUT_GRAM)
    errors = [
        float(
            row_errors(
                Lqlora(iterations=turns, damping=0.0)
                .solve(layer.W_OI, layer.statistics, format)
                .weight()
                - layer.W_OI,
                H,
            ).sum()
        )
        for turns in (1, 2, 4, 20)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_outputs_without_gradients_keep_a_least_weight(layer: Layer) -> None:
    G = torch.ones(48)
    G[:40] = 0
    a_O, _ = Lqlora(metric="fisher").metric_of(layer.W_OI, seen(layer, G))
    assert torch.allclose(a_O[:40], torch.tensor(LEAST_SHARE * 8 / 48))


def test_what_cannot_be_solved_is_refused(layer: Layer) -> None:
    format = summed("nf3-g32&rank-r8")
    with pytest.raises(NumericalError, match="no calibration token"):
        Lqlora().solve(layer.W_OI, Statistics(tokens=0), format)
    with pytest.raises(NumericalError, match="no finite loss gradient"):
        Lqlora(metric="fisher").solve(layer.W_OI, seen(layer, torch.zeros(48)), format)
    with pytest.raises(CandidateError, match="lqlora cannot fill nf3-g64"):
        Lqlora().solve(layer.W_OI, layer.statistics, format_named("nf3-g64"))
    with pytest.raises(CandidateError, match="allowed: gram, fisher, weight"):
        Lqlora(metric="best")  # type: ignore[arg-type]
    with pytest.raises(CandidateError, match="at least 1 iteration"):
        Lqlora(iterations=0)
