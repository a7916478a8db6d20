"""How important each block is: what it turns, what its absence turns at the end, what it costs.

Papers:  Block Influence: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant
         Than You Expect", 2024.  Macro Influence: Pei et al., "FuseGPT: Learnable Layers Fusion of
         Generative Pre-trained Transformers", 2024.  Loss without a block: many.
Idea:    One forward pass keeps the input of every block on disk.  What a block does to its input is
         read off two of these files; without a block, only the blocks behind it are run again.

Equations -> code
    BI_l = 1 - mean_t cos(x_l, x_l+1)                      block_influence   n is the last block
    MI_l = 1 - mean_t cos(x_n+1, x_n+1 without l)          macro_influence   before the final norm
    KL(original || without l), perplexity                  without           what plans should trust
Shapes:  x [rows, T, H], the residual stream.
Cost:    one forward pass; with ``suffixes`` half a pass per block and two of the head.
Differs: 1. The first positions of every row are left out of the cosines: attention sinks dominate
            them.  Pairs with a vector of zeros are left out and counted.
         2. Cosines are of the vectors as they are; a final LayerNorm would centre them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import pi
from pathlib import Path

import torch
from torch import Tensor

from blockwright.evaluate.quality import FinalHidden, measure, run_from, run_to_file
from blockwright.stream import ActivationFile, Inputs, Stem, Stream
from blockwright.types import Quality

SINK_TOKENS = 4
"""First positions of a row that no cosine looks at, if the rows are longer."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How far vectors are from others, mean over positions."""

    cosine_distance: float
    """1 - cos, 0 to 2."""
    angle: float
    """Angle / pi, 0 to 1."""
    relative_change: float
    """|y - x| / |x|"""
    positions: int
    zeros: int = 0
    """Positions left out, because x or y is zero there."""


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """One block of a model."""

    block: int
    own: Turn
    """From its input to its output; ``block_influence`` is its cosine distance."""
    end: Turn | None = None
    """From the model's last hidden states to those without the block."""
    without: Quality | None = None
    """The model without the block, against the original."""

    @property
    def block_influence(self) -> float:
        return self.own.cosine_distance

    @property
    def macro_influence(self) -> float:
        if self.end is None:
            raise ValueError("the blocks behind it were not run without it: ask for suffixes")
        return self.end.cosine_distance

    @property
    def drop_loss(self) -> float:
        """KL in nats per token; of encoders the squared relative error of the last hidden state."""
        if self.without is None:
            raise ValueError("the blocks behind it were not run without it: ask for suffixes")
        if self.without.kl_divergence is not None:
            return self.without.kl_divergence
        return (self.without.relative_error or 0.0) ** 2


def score_blocks(
    stream: Stream,
    inputs: Inputs,
    folder: Path,
    *,
    original: FinalHidden | None = None,
    suffixes: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> list[BlockScores]:
    """Scores of the blocks that ``stream`` runs; ``folder`` is scratch space for their inputs.

    ``original``: what the model is compared with at its end, itself if None (a model that lost
    blocks before is compared with the whole one, so that drift shows).  ``advance`` is called after
    every block.
    """
    stem, files = run_prefixes(stream, inputs, folder)
    whole = FinalHidden(stream, inputs, stem, files[-1])
    scores = []
    for place, index in enumerate(stream.blocks):
        own = turn(files[place], files[place + 1], inputs)
        end, without = None, None
        if suffixes:
            reference = original or whole
            target = folder / "suffix.bin"
            target.unlink(missing_ok=True)
            final = run_from(files[place], place + 1, stream, inputs, stem, target)
            end = turn(reference.file, final.file, inputs)
            without = measure(final, reference)
            if final.file.path != files[place].path:
                final.file.path.unlink()
        scores.append(BlockScores(block=index, own=own, end=end, without=without))
        advance()
    for file in files:
        file.path.unlink()
    return scores


def removal_order(
    stream: Stream,
    inputs: Inputs,
    folder: Path,
    count: int,
    score: Callable[[BlockScores], float] = lambda found: found.drop_loss,
) -> list[int]:
    """Blocks by what a greedy search removes first: the least score, measured anew after every
    removal against the whole model.  Raises ``ValueError`` unless a block is left.
    """
    if not 0 <= count < len(stream.blocks):
        raise ValueError(f"{count} of {len(stream.blocks)} blocks cannot be removed")
    original = run_to_file(stream, inputs, folder / "whole.bin")
    removed: list[int] = []
    for _ in range(count):
        kept = stream.with_blocks([index for index in stream.blocks if index not in removed])
        found = score_blocks(kept, inputs, folder, original=original)
        removed.append(min(found, key=score).block)
    original.file.path.unlink()
    return removed


def run_prefixes(stream: Stream, inputs: Inputs, folder: Path) -> tuple[Stem, list[ActivationFile]]:
    """One forward pass; the inputs of every block, and the last one's outputs, each in a file."""
    stem = stream.run_stem(inputs, folder / "prefix-0.bin")
    files = [stream.file(folder / "prefix-0.bin", stem)]
    for place, index in enumerate(stream.blocks):
        files.append(stream.file(folder / f"prefix-{place + 1}.bin", stem))
        batches = files[place].batches(inputs.rows, inputs.batch_size)
        stream.run_block(index, stream.block(index), stem, batches, output=files[-1].path)
    return stem, files


def turn(first: ActivationFile, second: ActivationFile, inputs: Inputs) -> Turn:
    """How far the second hidden states are from the first ones."""
    pairs = zip(
        first.batches(inputs.rows, inputs.batch_size),
        second.batches(inputs.rows, inputs.batch_size),
        strict=True,
    )
    return turn_of(without_sinks(x, y) for x, y in pairs)


def without_sinks(x_BTH: Tensor, y_BTH: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [N, H] behind the first positions of every row."""
    start = SINK_TOKENS if x_BTH.ndim == 3 and x_BTH.shape[1] > SINK_TOKENS else 0
    return tuple(part[:, start:].flatten(0, -2).double() for part in (x_BTH, y_BTH))  # type: ignore[return-value]


def turn_of(pairs: Iterator[tuple[Tensor, Tensor]] | Sequence[tuple[Tensor, Tensor]]) -> Turn:
    """Means over all positions of pairs x, y [N, H]."""
    sums, positions, zeros = torch.zeros(3, dtype=torch.float64), 0, 0
    for first, second in pairs:
        seen = (first.norm(dim=-1) * second.norm(dim=-1)) > 0
        x, y = first[seen], second[seen]
        cosine = ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).clamp(-1, 1)
        change = (y - x).norm(dim=-1) / x.norm(dim=-1)
        sums += torch.stack([(1 - cosine).sum(), (cosine.arccos() / pi).sum(), change.sum()]).cpu()
        positions += len(x)
        zeros += int((~seen).sum())
    means = (sums / max(positions, 1)).tolist()
    return Turn(
        cosine_distance=means[0],
        angle=means[1],
        relative_change=means[2],
        positions=positions,
        zeros=zeros,
    )
