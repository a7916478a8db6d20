"""Codes that are trained: where they start, what they may become, and what that gains."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.packing import pack_codes, unpack_codes
from blockwright.numerics.ranges import fit_range
from blockwright.tuning import (
    Example,
    Trained,
    TrainedCodes,
    TrainedTensor,
    TuningSettings,
    Values,
    tune,
)
from blockwright.types import StoredCodes
from tests.layers import outlier_layer

LAYER = outlier_layer(0, 16, 64, 640)
BITS = 2
GRID = AffineGrid(*fit_range(LAYER.W_OI.view(16, 1, 64), BITS, False), 1 << BITS, 64)
CODES = GRID.encode(LAYER.W_OI, slice(None))
POSITION = LAYER.W_OI / GRID.scale + GRID.zero_point


def trained(codes: Tensor = CODES, pull: float = 0.5, pace: float = 1.0) -> TrainedCodes:
    stored = StoredCodes(codes_OI=codes, levels=1 << BITS, pack=partial(pack_codes, bits=BITS))
    return TrainedCodes(stored, POSITION, pull=pull, pace=pace)


@pytest.mark.parametrize("pull", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_the_start_is_the_codes_as_they_were(pull: float, shift: int) -> None:
    """However far the weight is from its code."""
    codes = (CODES + shift) % 4
    start = trained(codes, pull)
    assert torch.equal(start.value().detach(), codes.float())
    assert torch.equal(start.stored(), pack_codes(codes, BITS))


def test_codes_follow_their_offset_and_stay_in_range() -> None:
    codes = trained(pull=0.0)
    with torch.no_grad():
        codes.offset += torch.linspace(-9, 9, 64)
    value = codes.value().detach()
    expected = (CODES + torch.linspace(-9, 9, 64).clamp(-8, 8)).round().clamp(0, 3)
    assert torch.equal(value, expected)
    assert torch.equal(unpack_codes(codes.stored(), BITS, 16, 64).float(), value)


def test_gradients_pass_the_rounding_but_not_the_ends() -> None:
    codes = trained(pull=0.0)
    with torch.no_grad():
        codes.offset[:, ::2] += 9
    codes.value().sum().backward()
    assert codes.offset.grad is not None
    assert (codes.offset.grad[:, 1::2] == 1).all()
    assert (codes.offset.grad[:, ::2] == 0).all()


def outputs(values: Values, inputs: Tensor, arguments: Any) -> Tensor:
    W_hat_OI = (values["codes"] - GRID.zero_point) * values["scale"]
    return inputs @ W_hat_OI.T


def test_codes_and_scales_learn_together_at_their_own_paces() -> None:
    batches = [Example(inputs=x, target=x @ LAYER.W_OI.T) for x in LAYER.X_TI.view(10, 2, 32, 64)]
    settings = TuningSettings(steps=200, rate=0.002, checks=20)
    losses = []
    for codes in (trained(pace=0.0), trained(pace=5.0)):
        tensors: dict[str, Trained] = {"codes": codes, "scale": TrainedTensor(GRID.scale)}
        found = tune(outputs, tensors, batches, settings, where="here")
        kept = unpack_codes(found.tensors["codes"], BITS, 16, 64)
        assert torch.equal(kept, CODES) == (codes.pace == 0)
        losses.append(found.loss / found.start_loss)
    assert losses[1] < 0.9 * losses[0]
