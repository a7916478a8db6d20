"""Double-quantized scales: near, exact again, and the same for any whole groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.double_scales import CHUNK, DoubleScales, chunks_of


def scales(out_features: int, groups: int, seed: int = 0) -> Tensor:
    return torch.rand(out_features, groups, generator=torch.Generator().manual_seed(seed)) + 0.05


@pytest.mark.parametrize("out_features", [1, 7, 256, 257, 600])
def test_a_scale_moves_by_at_most_a_step(out_features: int) -> None:
    scale = scales(out_features, 3)
    stored = DoubleScales.nearest(scale)
    assert stored.codes.shape == (3, out_features)
    assert stored.offset.shape == stored.step.shape == (3, chunks_of(out_features))
    for start in range(0, out_features, CHUNK):
        chunk = scale[start : start + CHUNK]
        span = chunk.amax(0) - chunk.amin(0)
        moved = (stored.scale()[start : start + CHUNK] - chunk).abs().amax(0)
        assert (moved <= span / 255).all()


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-3, 1e-2, 1.0, 100.0])
def test_stored_scales_are_stored_again_exactly(spread: float) -> None:
    for seed in range(20):
        found = DoubleScales.nearest(0.01 + spread * scales(300, 4, seed)).scale()
        assert torch.equal(DoubleScales.nearest(found).scale(), found)


def test_whole_groups_are_stored_by_themselves() -> None:
    scale = scales(300, 4)
    whole = DoubleScales.nearest(scale).scale()
    assert torch.equal(DoubleScales.nearest(scale[:, 1:3]).scale(), whole[:, 1:3])


def test_scales_that_do_not_matter_widen_no_range() -> None:
    scale = scales(40, 2)
    unused = torch.zeros_like(scale, dtype=torch.bool)
    scale[5, 0], unused[5, 0] = 1e6, True
    unused[:, 1] = True
    found = DoubleScales.nearest(scale, unused).scale()
    assert torch.isfinite(found).all()
    assert (found > 0).all()
    others = torch.arange(40) != 5
    assert (found[others, 0] - scale[others, 0]).abs().max() < 0.01


def test_gradients_reach_offset_and_step() -> None:
    stored = DoubleScales.nearest(scales(300, 2))
    offset, step = (each.float().requires_grad_() for each in (stored.offset, stored.step))
    DoubleScales(stored.codes, offset, step).scale().sum().backward()
    assert offset.grad is not None
    assert step.grad is not None
    assert offset.grad.tolist() == [[256.0, 44.0]] * 2
    assert step.grad.sum() == stored.codes.sum()
