"""FuseGPT: a block that goes leaves its weights to its neighbour, which is tuned to do both's work.

Paper:   Pei, Yin, Zhen, Yu, "FuseGPT: Learnable Layers Fusion of Generative Pre-trained
         Transformers", 2024.
Idea:    A redundant block is not thrown away.  Each of its matrices is put into the matrix of the
         same name next to it, times a learnable mask of low rank that starts at zero; beside it the
         matrix itself moves by a product of low rank.  Both are trained until the block gives what
         the two gave together, and then multiplied out: what is stored is an ordinary block.

Equations -> code
    W' = W + (A B) o W_lost + C D                 Factors.weight
    loss = |f'(x) - f2(f1(x))|^2 / |f2(f1(x))|^2   tuning.tune
Shapes:  O outputs, I inputs, R = rank: A, C [O, R] start at zero, B, D [R, I] at random.
Units:   rate: of A, in shares of the other block's weights, and of C, in sizes of the own ones, per
         step.  Cost = bytes as stored, those of one block.
Needs:   no statistics; hidden states in front of the two blocks and behind them.   Fills: fuse.
Cost:    time 3 steps forwards of a block over 2,048 tokens, memory a block in fp32 and its
         activations.
Differs from the paper:
    1. The group is two blocks: the one that goes, and the neighbour that takes over.  The paper
       tunes seven or eight together, which no plan could choose from one by one.
    2. The loss is the squared error of hidden states over their size, in place of a divergence of
       their softmax, which the released code takes along the batch.
    3. Norms and biases are trained as well; the best state on held batches is kept, the start
       among them.
    4. Which block goes is the plan's choice, from measured losses.
Raises:  NumericalError when the blocks give nothing finite, or one batch is all there is.
Checked: tests/claims/test_depth.py: held-out KL of the bundled model against dropping the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.tuning import Trained, TrainedTensor, TuningSettings, Values, tune
from blockwright.types import Format, FusedBlock, FuseFormat, FusingMethod, NeighbourBlocks


@dataclass(frozen=True, kw_only=True)
class FuseGpt(FusingMethod):
    """``fusegpt``"""

    rank: int = 16
    """Of the mask, and of the change."""
    steps: int = 128
    rate: float = 0.02
    checks: int = 4
    inject: bool = True
    """Put the other block's matrices in; otherwise the own ones alone are changed."""

    paper: ClassVar[str] = (
        "Pei, Yin, Zhen, Yu: FuseGPT: Learnable Layers Fusion of Generative Pre-trained"
        " Transformers, 2024"
    )
    family: ClassVar[str] = "depth"
    fills: ClassVar[type[Format]] = FuseFormat  # type: ignore[type-abstract]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 0 or not self.rate > 0:
            raise CandidateError(
                f"options fusegpt@rank={self.rank},rate={self.rate:g},steps={self.steps}: the rank"
                " must be 1 or more, the rate above 0, the steps not negative; the defaults are"
                " 16, 0.02 and 128"
            )

    def fuse(self, blocks: NeighbourBlocks) -> FusedBlock:
        draw = torch.Generator().manual_seed(0)
        factors = {
            name: Factors(W_OI, blocks.lost.get(name) if self.inject else None, self.rank, draw)
            for name, W_OI in sorted(blocks.kept.items())
        }
        trained: dict[str, Trained] = {
            f"{part} {name}": factor
            for name, found in factors.items()
            for part, factor in found.trained.items()
        }
        trained |= {name: TrainedTensor(vector) for name, vector in blocks.vectors.items()}

        def forward(values: Values, inputs: Tensor, arguments: Any) -> Tensor:
            weights = {name: found.weight(name, values) for name, found in factors.items()}
            vectors = {name: values[name] for name in blocks.vectors}
            return blocks.run({**weights, **vectors}, inputs, arguments)

        settings = TuningSettings(steps=self.steps, rate=self.rate, checks=self.checks)
        tuned = tune(forward, trained, blocks.batches, settings, where=blocks.where)
        with torch.no_grad():
            weights = {name: found.weight(name, tuned.tensors) for name, found in factors.items()}
        return FusedBlock(
            weights=weights,
            vectors={name: tuned.tensors[name] for name in blocks.vectors},
            start_loss=tuned.start_loss,
            loss=tuned.loss,
        )


class Factors:
    """What is trained of one matrix."""

    def __init__(
        self, W_OI: Tensor, lost_OI: Tensor | None, rank: int, draw: torch.Generator
    ) -> None:
        self.W_OI, self.lost_OI = W_OI, lost_OI
        self.size = float(W_OI.square().mean().sqrt())
        rank = min(rank, *W_OI.shape)
        names = ("C", "D") if lost_OI is None else ("A", "B", "C", "D")
        self.trained = {
            name: Factor(_start(name, W_OI, rank, draw), 1.0 if name in "AC" else rank**-0.5)
            for name in names
        }

    def weight(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """W' from the factors' values."""
        change_OI = self.size * (values[f"C {name}"] @ values[f"D {name}"])
        if self.lost_OI is not None:
            change_OI = change_OI + (values[f"A {name}"] @ values[f"B {name}"]) * self.lost_OI
        return self.W_OI + change_OI


class Factor:
    """One factor, a ``Trained``: fp32, moved in units of its own."""

    def __init__(self, start: Tensor, unit: float) -> None:
        self.start, self.unit, self.pace = start, unit, 1.0
        self.offset = torch.zeros_like(start, requires_grad=True)

    def value(self) -> Tensor:
        return self.start + self.unit * self.offset

    def stored(self) -> Tensor:
        return self.value().detach()


def _start(name: str, W_OI: Tensor, rank: int, draw: torch.Generator) -> Tensor:
    """Zeros [O, R], or rows [R, I] with which a product has the size of its left factor."""
    if name in "AC":
        return W_OI.new_zeros(len(W_OI), rank)
    rows_RI: Tensor = torch.randn(rank, W_OI.shape[1], generator=draw) / rank**0.5
    return rows_RI.to(W_OI.device)


METHOD = FuseGpt
