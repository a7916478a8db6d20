"""The columns of LLM.int8()."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.llmint import Llmint
from blockwright.numerics.outliers import largest_inputs
from blockwright.registry import format_named, method_named
from blockwright.types import Statistics
from tests.layers import outlier_layer


def test_the_largest_inputs_are_kept_and_equal_ones_from_the_left() -> None:
    absmax = torch.tensor([1.0, 5.0, 2.0, 5.0, 5.0, 0.0])
    assert largest_inputs(absmax, 2).tolist() == [1, 3]
    assert largest_inputs(absmax, 0).tolist() == []


def test_without_kept_columns_it_is_int8() -> None:
    layer = outlier_layer(0, out_features=24, in_features=128, tokens=300)
    found = Llmint().solve(layer.W_OI, layer.statistics, format_named("llmint8-p0"))
    plain = method_named("rtn").solve(layer.W_OI, layer.statistics, format_named("int8"))
    assert torch.equal(found.weight(), plain.weight())


def test_sites_without_tokens_and_other_formats_are_refused() -> None:
    W = torch.ones(4, 64)
    with pytest.raises(NumericalError, match="no calibration token"):
        Llmint().solve(W, Statistics(tokens=0), format_named("llmint8-p1"))
    with pytest.raises(CandidateError, match="llmint cannot fill int8"):
        Llmint().solve(W, Statistics(tokens=1), format_named("int8"))
    seen = Statistics(tokens=1, input_absmax=torch.arange(64).float())
    with pytest.raises(NumericalError, match="too large for bfloat16"):
        Llmint().solve(W * 3.4e38, seen, format_named("llmint8-p2"))
