"""Local healing: what a plan has at hand is tuned block by block, on the inputs that the healed
prefix really produces, towards what the original block gave on the original inputs.

What a block is tuned to is stored before the next one sees it, and read back: a killed run resumes
and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from blockwright.refine.tunable import TunableBlock
from blockwright.stream import ActivationFile, BlockCall, Inputs, Stem, Stream
from blockwright.tuning import Example, Tuned, TuningSettings, Values, tune
from blockwright.types import PackedLinear, Site

LARGEST_BATCH = 8
LEAST_BATCHES = 5
"""Batches are made smaller until there are so many, so that a fifth of them can judge."""


@dataclass(frozen=True)
class HealedBlocks:
    """Where blocks, targets and results are; ``index`` counts the original's blocks."""

    is_done: Callable[[int], bool]
    """Whether a block's result is stored."""
    block: Callable[[int], nn.Module]
    """The block as it stands now: healed, when its result is stored."""
    packed: Callable[[int], Mapping[Site, PackedLinear]]
    """Packed modules of its sites, to be trained."""
    target: Callable[[int, Stem], ActivationFile]
    """Outputs of the original block on original inputs."""
    absent: Collection[str]
    """Parameters that go with dropped parts: they are at zero and stay there."""
    heal: Callable[[int, Callable[[], Tuned]], None]
    """Store what the call gives, or the reason of its ``NumericalError``."""


def healing_inputs(inputs: Inputs, batch_tokens: int) -> Inputs:
    """The same rows in batches for tuning: of at most 8 rows, and at least 5 batches."""
    length = inputs.values.shape[1]
    size = min(LARGEST_BATCH, batch_tokens // length, inputs.rows // LEAST_BATCHES)
    return Inputs(inputs.name, inputs.values, max(1, size))


def heal_blocks(
    stream: Stream,
    inputs: Inputs,
    folder: Path,
    blocks: HealedBlocks,
    settings: TuningSettings,
    advance: Callable[[], None],
) -> None:
    """Walk the blocks of ``stream`` (the planned model); ``folder`` keeps hidden states."""
    if all(blocks.is_done(index) for index in stream.blocks):
        return
    stem = stream.run_stem(inputs, hidden_path(folder, 0))
    start = _finished(stream, stem, inputs, folder, blocks)
    for position, index in enumerate(stream.blocks):
        if position >= start:
            source = stream.file(hidden_path(folder, position), stem)
            if not blocks.is_done(index):
                window = stream.blocks[position : position + settings.window]
                target = blocks.target(window[-1], stem)
                batches = StoredBatches(stem, source, target, inputs)
                blocks.heal(index, partial(_tune, stream, window, blocks, batches, settings))
            stream.run_block(
                index,
                blocks.block(index),
                stem,
                source.batches(inputs.rows, inputs.batch_size),
                output=hidden_path(folder, position + 1),
            )
            source.path.unlink()
        advance()


class StoredBatches(Sequence[Example]):
    """Batches of a block, read from disk when they are asked for; their arguments are the calls of
    all blocks.
    """

    def __init__(
        self, stem: Stem, source: ActivationFile, target: ActivationFile, inputs: Inputs
    ) -> None:
        """``source``: what stands in front of the block; ``target``: what shall come out."""
        self._calls = stem.calls
        self._source, self._target, self._inputs = source, target, inputs

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, batch: int) -> Example:  # type: ignore[override]
        start = batch * self._inputs.batch_size
        stop = min(start + self._inputs.batch_size, self._inputs.rows)
        return Example(
            inputs=self._source.read(start, stop),
            target=self._target.read(start, stop),
            arguments=self._calls[batch],
        )


def _tune(
    stream: Stream,
    window: Sequence[int],
    blocks: HealedBlocks,
    batches: StoredBatches,
    settings: TuningSettings,
) -> Tuned:
    """Tune the first block of a window towards what comes out of its last."""
    index, *following = window
    block = TunableBlock(stream, index, blocks.block(index), blocks.packed(index), blocks.absent)
    behind = {other: stream.block(other).requires_grad_(False) for other in following}

    def forward(values: Values, inputs: Tensor, calls: Sequence[BlockCall]) -> Tensor:
        outputs = block.forward(values, inputs, calls[index])
        for other, module in behind.items():
            outputs = calls[other].run(module, outputs)
        return outputs

    return tune(forward, block.trained, batches, settings, where=f"block {index}")


def hidden_path(folder: Path, position: int) -> Path:
    """Hidden states in front of the block at this position, behind a healed prefix."""
    return folder / f"healed-{position:04d}.bin"


def _finished(
    stream: Stream, stem: Stem, inputs: Inputs, folder: Path, blocks: HealedBlocks
) -> int:
    """How many blocks an earlier, killed healing has finished."""
    done = 0
    for position, index in enumerate(stream.blocks, start=1):
        if not blocks.is_done(index):
            break
        if stream.file(hidden_path(folder, position), stem).is_complete(inputs.rows):
            done = position
    return done
