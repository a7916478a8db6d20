"""FuseGPT: starts at the block as it is, and multiplies its factors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.depth.fusegpt import Factors, FuseGpt
from blockwright.tuning import Example
from blockwright.types import NeighbourBlocks

DRAW = torch.Generator().manual_seed(0)
KEPT, LOST = (0.3 * torch.randn(16, 16, generator=DRAW) for _ in range(2))


def run(values: Mapping[str, Tensor], x: Tensor, arguments: Any) -> Tensor:
    return x + x.relu() @ values["linear"].T


def blocks(target: Tensor, count: int = 6) -> NeighbourBlocks:
    """The batches ask for what ``target`` [16, 16] gives."""
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(4, 10, 16, generator=draw) for _ in range(count)]
    examples = [Example(inputs=x, target=run({"linear": target}, x, None)) for x in inputs]
    return NeighbourBlocks(
        kept={"linear": KEPT}, lost={"linear": LOST}, run=run, batches=examples, where="block 1"
    )


def test_without_steps_it_is_the_block_that_stays() -> None:
    fused = FuseGpt(steps=0).fuse(blocks(KEPT + LOST))
    assert torch.equal(fused.weights["linear"], KEPT)
    assert fused.loss == fused.start_loss


def test_the_factors_multiply_out_to_the_papers_weight() -> None:
    draw = torch.Generator().manual_seed(2)
    factors = Factors(KEPT, LOST, 3, draw)
    values = {
        f"{n} linear": torch.randn(f.start.shape, generator=draw)
        for n, f in factors.trained.items()
    }
    A, B, C, D = (values[f"{n} linear"] for n in "ABCD")
    expected = KEPT + (A @ B) * LOST + KEPT.square().mean().sqrt() * (C @ D)
    torch.testing.assert_close(factors.weight("linear", values), expected)
    start = {f"{n} linear": factor.value() for n, factor in factors.trained.items()}
    assert torch.equal(factors.weight("linear", start), KEPT)


@pytest.mark.parametrize("inject", [True, False])
def test_training_brings_a_change_of_low_rank_back(inject: bool) -> None:
    """What is asked for lies within reach of either kind of change."""
    direction = torch.ones(16, 1) @ torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    change = 0.3 * direction * (LOST if inject else 0.3)
    method = FuseGpt(steps=300, rate=0.02, rank=4, inject=inject)
    fused = method.fuse(blocks(KEPT + change))
    assert fused.loss < 0.05 * fused.start_loss
    moved = fused.weights["linear"] - KEPT
    assert (moved - change).norm() < 0.3 * change.norm()


def test_one_batch_is_too_few_and_options_have_bounds() -> None:
    with pytest.raises(NumericalError, match="block 1: tuning needs two batches"):
        FuseGpt().fuse(blocks(KEPT, count=1))
    with pytest.raises(CandidateError, match="rank must be 1 or more"):
        FuseGpt(rank=0)
