"""One small batch, on which the first block of every kind is looked at."""

from __future__ import annotations

from torch import Tensor

from blockwright.anatomy import Skeleton
from blockwright.pipeline.opening import Run
from blockwright.stream import Inputs, Stem
from blockwright.types import SiteKind

SEEN_TOKENS = 64
"""Tokens of one calibration row."""


def pattern_of(skeleton: Skeleton, index: int) -> tuple[str, ...]:
    """Names of a block's linears relative to it: what blocks of one kind share."""
    prefix = f"{skeleton.block_path}.{index}."
    sites = skeleton.block_sites(index)
    return tuple(s.id.removeprefix(prefix) for s in sites if s.kind is SiteKind.LINEAR)


def first_of_each(skeleton: Skeleton) -> dict[tuple[str, ...], int]:
    """The first block of every pattern."""
    first: dict[tuple[str, ...], int] = {}
    for index in range(skeleton.num_blocks):
        first.setdefault(pattern_of(skeleton, index), index)
    return first


def one_batch(run: Run) -> tuple[Stem, Tensor]:
    """How blocks are called, and hidden states [1, T, H] for any of them, fp32."""
    stream, inputs = run.stream(), run.calibration_inputs
    one = Inputs(inputs.name, inputs.values[:1, :SEEN_TOKENS].contiguous(), 1)
    folder = run.library.work_folder("seen-" + run.statistics_digest)
    stem = stream.run_stem(one, folder / "stem.bin")
    hidden = stream.file(folder / "stem.bin", stem).read(0, 1)
    return stem, hidden.to(stream.device)
