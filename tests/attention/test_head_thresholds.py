"""Thresholds per head: the dynamic program against all combinations, and what it is made of."""

from __future__ import annotations

import itertools

import pytest
import torch

from blockwright.attention import Context, Layout, attend
from blockwright.attention.head_thresholds import (
    MOST_STEPS,
    fit_heads,
    least_error,
    measure_heads,
)
from blockwright.attention.metrics import density
from blockwright.attention.planted import PRESETS, plant
from blockwright.attention.policies.xattention import XAttention
from blockwright.errors import AttentionError

TOKENS = 256
POLICY = XAttention(block=32, stride=8)
CONTEXT = Context(layout=Layout.plain(TOKENS, TOKENS), scale=0.125)


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = [plant(PRESETS[name], TOKENS, seed=1) for name in ("cluster", "flat", "vert")]
    q, k, v = (torch.cat([getattr(head, x) for head in heads], 1) for x in "qkv")
    return q, k, v


@pytest.mark.parametrize("seed", range(20))
def test_no_combination_of_steps_is_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    error = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    tiles = torch.randint(0, 12, (3, 4), generator=generator)
    least = int(tiles.amin(1).sum())
    budget = int(torch.randint(least, least + 15, (1,), generator=generator))
    rows = torch.arange(3)
    found = least_error(error, tiles, budget)
    assert int(tiles[rows, list(found)].sum()) <= budget
    allowed = [
        float(error[rows, list(steps)].sum())
        for steps in itertools.product(range(4), repeat=3)
        if int(tiles[rows, list(steps)].sum()) <= budget
    ]
    assert float(error[rows, list(found)].sum()) == pytest.approx(min(allowed))


def test_costs_are_those_of_one_head_at_a_time() -> None:
    q, k, v = tensors()
    costs = measure_heads(POLICY, q, k, v, CONTEXT)
    assert costs.tiles.shape == (3, MOST_STEPS + 1)
    assert bool((costs.tiles.diff(dim=1) <= 0).all())
    done = attend(q, k, v, policy=XAttention(block=32, stride=8, steps="2-0-5"), context=CONTEXT)
    dense = attend(q, k, v, policy="dense", context=CONTEXT).output
    error = (done.output - dense).double().square().sum((0, 2, 3))
    picked = torch.tensor([2, 0, 5])
    torch.testing.assert_close(costs.error[torch.arange(3), picked], error)
    visited = costs.tiles[torch.arange(3), picked].sum() / costs.visible
    assert float(visited) == pytest.approx(density(done.choice, CONTEXT))


def test_the_density_is_met_from_below() -> None:
    q, k, v = tensors()
    fitted = fit_heads(POLICY, q, k, v, CONTEXT, density=0.7)
    assert len(fitted.steps.split("-")) == 3
    assert density(fitted.choose(q, k, v, CONTEXT), CONTEXT) <= 0.7


def test_what_cannot_be_is_refused() -> None:
    q, k, v = tensors()
    with pytest.raises(AttentionError, match="still visit 0"):
        fit_heads(POLICY, q, k, v, CONTEXT, density=0.01)
    with pytest.raises(AttentionError, match="steps for 2 heads, the model's attention has 3"):
        XAttention(block=32, stride=8, steps="1-2").choose(q, k, v, CONTEXT)
    with pytest.raises(AttentionError, match="steps is '1-x'"):
        XAttention(steps="1-x")
    with pytest.raises(AttentionError, match="leave shared"):
        XAttention(steps="1-2", shared=True)
