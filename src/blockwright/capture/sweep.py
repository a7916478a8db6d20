"""The forward sweep: calibration text through the original, one block at a time.

Every block's inputs go to a file ``inputs-<block>.bin``; a finished file is never computed again,
so a killed sweep resumes at the block it died in.  Each stage reads its input back from disk even
when it was never disturbed: a resumed run sees the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blockwright.capture.observe import BlockObserver
from blockwright.stream import Inputs, Stem, Stream
from blockwright.types import Site, Statistic, Statistics


@dataclass(frozen=True)
class CapturedBlock:
    """One block with the statistics of its sites."""

    index: int
    module: nn.Module
    parameters: Mapping[str, Tensor]
    """Materialised parameters by model name."""
    statistics: Mapping[str, Statistics]
    """By site id; an expert no token was routed to is missing."""
    groups: tuple[tuple[str, ...], ...]
    """Site ids by shared input, in order of execution."""


def inputs_path(folder: Path, index: int) -> Path:
    """Inputs of block ``index``; index = number of blocks: outputs of the last."""
    return folder / f"inputs-{index:04d}.bin"


def forward_sweep(
    stream: Stream,
    inputs: Inputs,
    folder: Path,
    wanted: Callable[[int], Collection[Statistic] | None],
) -> Iterator[CapturedBlock]:
    """Yield the blocks for which ``wanted`` names statistics (None: nothing is wanted of this
    block).

    Blocks of which nothing is wanted and whose outputs are on disk are not even loaded.
    """
    stem = stream.run_stem(inputs, inputs_path(folder, 0))
    for index in stream.blocks:
        needs = wanted(index)
        done = stream.file(inputs_path(folder, index + 1), stem).is_complete(inputs.rows)
        if needs is None and done:
            continue
        yield from _capture_block(stream, inputs, stem, folder, index, needs)


def _capture_block(
    stream: Stream,
    inputs: Inputs,
    stem: Stem,
    folder: Path,
    index: int,
    needs: Collection[Statistic] | None,
) -> Iterator[CapturedBlock]:
    block = stream.block(index)
    observer = BlockObserver(needs or ())
    source = stream.file(inputs_path(folder, index), stem)
    stream.run_block(
        index,
        block,
        stem,
        source.batches(inputs.rows, inputs.batch_size),
        output=inputs_path(folder, index + 1),
        observer=observer if needs is not None else None,
        watched=linear_sites(stream, index),
    )
    if needs is not None:
        yield CapturedBlock(
            index, block, stream.parameters(index, block), observer.statistics(), observer.groups()
        )


def linear_sites(stream: Stream, index: int) -> list[Site]:
    """The sites of a block that multiply."""
    return [site for site in stream.skeleton.block_sites(index) if site.parameter]


@torch.no_grad()
def capture_tables(
    stream: Stream, inputs: Inputs, folder: Path, needs: Collection[Statistic], tokens: int
) -> dict[str, Statistics]:
    """Statistics of the head's input on the first ``tokens`` calibration tokens, by table site."""
    rows = max(1, min(inputs.rows, tokens // inputs.values.shape[1]))
    part = Inputs(inputs.name, inputs.values[:rows], inputs.batch_size)
    scratch = folder / "tables.bin"
    stem = stream.run_stem(part, scratch)
    scratch.unlink()
    observer = BlockObserver(needs)
    final = stream.file(inputs_path(folder, stream.blocks[-1] + 1), stem)
    for _ in stream.run_head(part, stem, final, observer):
        pass
    return observer.statistics()
