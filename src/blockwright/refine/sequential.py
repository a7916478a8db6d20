"""True-sequential refinement.

Variants are built on the original's inputs, so that building is a pure function.  What a site
really sees comes from the compressed sites in front of it.  Refinement walks the chosen plan from
the first block to the last, and inside a block input by input (q/k/v, then o, then gate/up, then
down): it gathers statistics of the real inputs and solves again, target still the original's
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from blockwright.stream import Inputs, Observer, Stem, Stream, weight_of, with_weights
from blockwright.types import Site, Statistic, Statistics


@dataclass(frozen=True)
class RefinedSite:
    """One site to solve again."""

    site: Site
    needs: Collection[Statistic]


class Gathering(Observer, Protocol):
    """An observer that gives statistics when the block has run (``capture.BlockObserver``)."""

    def statistics(self) -> Mapping[str, Statistics]:
        """By site id."""

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Site ids by shared input, in order of execution."""


Resolve = Callable[[Site, Tensor, Statistics | None], Tensor]
"""Solve a site: its original weight and the statistics of its real inputs -> the weight that now
stands.
"""
NewObserver = Callable[[Sequence[Site], Stem, Collection[Statistic]], Gathering]
"""Makes the observer that gathers given statistics of some sites of a block."""


@torch.no_grad()
def refine_blocks(
    stream: Stream,
    inputs: Inputs,
    folder: Path,
    chosen: Mapping[str, RefinedSite],
    new_observer: NewObserver,
    solve: Resolve,
    advance: Callable[[], None],
) -> None:
    """Walk the blocks; ``stream`` gives original weights, ``folder`` keeps hidden states."""
    stem = stream.run_stem(inputs, hidden_path(folder, 0))
    start = _finished(stream, stem, inputs, folder)
    for position, index in enumerate(stream.blocks):
        if position >= start:
            source = hidden_path(folder, position)
            run = _BlockRun(stream, inputs, stem, index, stream.block(index), source)
            sites = [s for s in stream.skeleton.block_sites(index) if s.id in chosen]
            for group in _groups(run, sites, new_observer):
                _refine_group(run, [chosen[name] for name in group], new_observer, solve)
            run.forward(output=hidden_path(folder, position + 1))
            source.unlink()
        advance()


def hidden_path(folder: Path, position: int) -> Path:
    """Hidden states in front of the block at this position, behind a refined prefix."""
    return folder / f"refined-{position:04d}.bin"


def _finished(stream: Stream, stem: Stem, inputs: Inputs, folder: Path) -> int:
    """How many blocks an earlier, killed refinement has finished."""
    for position in range(len(stream.blocks), 0, -1):
        if stream.file(hidden_path(folder, position), stem).is_complete(inputs.rows):
            return position
    return 0


@dataclass(frozen=True)
class _BlockRun:
    """A loaded block and its inputs on disk."""

    stream: Stream
    inputs: Inputs
    stem: Stem
    index: int
    block: nn.Module
    source: Path

    def forward(
        self,
        *,
        output: Path | None = None,
        observer: Observer | None = None,
        watched: Sequence[Site] = (),
        batches: int | None = None,
    ) -> None:
        file = self.stream.file(self.source, self.stem)
        self.stream.run_block(
            self.index,
            self.block,
            self.stem,
            file.batches(self.inputs.rows, self.inputs.batch_size),
            output=output,
            observer=observer,
            watched=watched,
            batches=batches,
        )


def _groups(
    run: _BlockRun, sites: Sequence[Site], new_observer: NewObserver
) -> tuple[tuple[str, ...], ...]:
    """Which sites share an input, in order of execution: seen on one batch.

    Sites that no token of it reached (experts) come last, each by itself.
    """
    if not sites:
        return ()
    observer = new_observer(sites, run.stem, ())
    run.forward(observer=observer, watched=sites, batches=1)
    seen = observer.groups()
    reached = {name for group in seen for name in group}
    unseen = tuple((site.id,) for site in sites if site.id not in reached)
    return _merge_tied((*seen, *unseen), {site.id: site.tie for site in sites})


def _merge_tied(
    groups: Sequence[tuple[str, ...]], ties: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """Groups of tied sites (the experts of one matrix) become one, at the place of the first."""
    merged: dict[str, list[str]] = {}
    for group in groups:
        merged.setdefault(ties[group[0]] or group[0], []).extend(group)
    return tuple(map(tuple, merged.values()))


def _refine_group(
    run: _BlockRun, members: Sequence[RefinedSite], new_observer: NewObserver, solve: Resolve
) -> None:
    needs = {name for member in members for name in member.needs}
    sites = [member.site for member in members]
    observer = new_observer(sites, run.stem, needs)
    run.forward(observer=observer, watched=sites)
    statistics = observer.statistics()
    parameters = run.stream.parameters(run.index, run.block)
    for site in sites:
        parameter = parameters[site.parameter]
        W_OI = weight_of(site, parameter)
        with_weights(parameter, {site: solve(site, W_OI, statistics.get(site.id))})
