"""Icbs: the mask it starts from, values, and what it cannot do."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.methods.sparsify.icbs import Icbs
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.registry import format_named, method_named
from blockwright.types import Statistics
from tests.layers import Layer, synth_layer


@pytest.fixture(scope="module")
def layer() -> Layer:
    return synth_layer(0, features=96, tokens=800)


@pytest.mark.parametrize("format", ["sparse2of4", "sparse50", "sparse4of8+int4"])
def test_swaps_beat_the_mask_they_start_from(layer: Layer, format: str) -> None:
    fmt = format_named(format)
    errors = [
        layer.heldout_error(method.solve(layer.W_OI, layer.statistics, fmt).weight())
        for method in (Icbs(refit=False), Wanda(refit=False))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_without_refit_kept_values_are_the_originals(layer: Layer) -> None:
    found = Icbs(refit=False).solve(layer.W_OI, layer.statistics, format_named("sparse50"))
    assert torch.equal(found.weight(), layer.W_OI.bfloat16().float() * found.mask_OI)


def test_uncorrelated_inputs_leave_the_mask_of_wanda(layer: Layer) -> None:
    diagonal = Statistics(tokens=9, input_gram=torch.linspace(0.1, 3, 96).diag())
    format = format_named("sparse50")
    masks = [m.solve(layer.W_OI, diagonal, format).mask_OI for m in (Icbs(), Wanda())]
    assert (masks[0] == masks[1]).float().mean() > 0.99  # damping moves near ties


@pytest.mark.parametrize("option", ["passes", "damping"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(CandidateError, match=f"icbs@{option}: got 0"):
        method_named("icbs", ((option, "0"),))
