"""HAWQ-V3's ranges and rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.hawq import Hawq
from blockwright.registry import format_named, method_named
from blockwright.types import Statistics
from tests.layers import Layer, outlier_layer

FORMAT = format_named("dyadic8")


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=24, in_features=64, tokens=300)


@pytest.mark.parametrize(("compensate", "plain"), [(False, "rtn"), (True, "gptq")])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_of_symmetric_rows_but_for_31_bits(
    compensate: bool, plain: str, bits: int, layer: Layer
) -> None:
    found = Hawq(compensate=compensate).solve(
        layer.W_OI, layer.statistics, format_named(f"dyadic{bits}")
    )
    rows = method_named(plain).solve(layer.W_OI, layer.statistics, format_named(f"int{bits}"))
    torch.testing.assert_close(found.weight(), rows.weight(), rtol=1e-6, atol=0)


def test_ranges_hold_what_calibration_saw(layer: Layer) -> None:
    found = Hawq().solve(layer.W_OI, layer.statistics, FORMAT)
    input_scale, output_scale = found.scales.tolist()
    assert float(layer.X_TI.abs().max()) == pytest.approx(127 * input_scale)
    assert float((layer.X_TI @ layer.W_OI.T).abs().max()) <= 32767 * output_scale


def test_zero_rows_zero_weights_and_dead_inputs_are_exact(layer: Layer) -> None:
    W = layer.W_OI.clone()
    W[3] = 0
    assert (Hawq().solve(W, layer.statistics, FORMAT).weight()[3] == 0).all()
    nothing = Hawq().solve(torch.zeros_like(W), layer.statistics, FORMAT)
    assert (nothing.weight() == 0).all()
    silent = replace(layer.statistics, input_absmax=torch.zeros(64))
    assert torch.isfinite(Hawq().solve(W, silent, FORMAT).weight()).all()


def test_sites_without_tokens_other_formats_and_bad_options_are_refused(layer: Layer) -> None:
    with pytest.raises(NumericalError, match="no calibration token"):
        Hawq().solve(layer.W_OI, Statistics(tokens=0), FORMAT)
    with pytest.raises(CandidateError, match="hawq cannot fill int4-g64"):
        Hawq().solve(layer.W_OI, layer.statistics, format_named("int4-g64"))
    with pytest.raises(CandidateError, match="hawq@damping: got 0"):
        Hawq(damping=0)
    endless = replace(layer.statistics, input_absmax=torch.full((64,), torch.inf))
    with pytest.raises(NumericalError, match="ranges are not finite"):
        Hawq(compensate=False).solve(layer.W_OI, endless, FORMAT)
