"""Sbl: one set of inputs for all rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.sbl import Sbl
from blockwright.registry import format_named, method_named
from tests.layers import Layer, outlier_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=32, in_features=64, tokens=400)


def test_all_rows_keep_the_same_inputs(layer: Layer) -> None:
    found = Sbl().solve(layer.W_OI, layer.statistics, format_named("sparse50"))
    assert torch.equal(found.mask_OI, found.mask_OI[:1].expand(32, -1))
    assert int(found.mask_OI[0].sum()) == 32


def test_inputs_that_no_row_reads_go_first(layer: Layer) -> None:
    W = layer.W_OI.clone()
    W[:, ::2] = 0
    found = Sbl().solve(W, layer.statistics, format_named("sparse50"))
    assert not found.mask_OI[:, ::2].any()
    assert (found.weight() - W).norm() < 2e-2 * W.norm()


def test_what_cannot_be_solved_says_why(layer: Layer) -> None:
    format = format_named("sparse50")
    with pytest.raises(NumericalError, match="the weight is zero"):
        Sbl().solve(torch.zeros(32, 64), layer.statistics, format)
    with pytest.raises(NumericalError, match="no calibration token"):
        Sbl().solve(layer.W_OI, replace(layer.statistics, tokens=0), format)
    for option, value in (("rule", "mean"), ("rounds", "0"), ("noise", "0.0"), ("damping", "0.0")):
        with pytest.raises(CandidateError, match=option):
            method_named("sbl", ((option, value),))
