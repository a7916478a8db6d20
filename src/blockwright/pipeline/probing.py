"""What one unit of each kind of work takes on this machine, found on block 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture import BlockObserver, linear_sites
from blockwright.evaluate import BATCH_DOCUMENTS, Loading, ask_fresh_process
from blockwright.library import Library
from blockwright.library.build import WantedVariant, build_variants, needs_of
from blockwright.library.group import build_group
from blockwright.pipeline.grouping import group_tensors, groups_of
from blockwright.pipeline.opening import Run
from blockwright.stream import Inputs, Stream, weight_of
from blockwright.types import Group, Site, Statistic, Statistics, VariantRecord

LONG_SECONDS = 1.0
"""What takes longer is timed once; shorter work is done first and then timed."""
HEAD_ROWS = 1
FRESH_STEPS = 8
"""Starting a process takes about as long as so many of the other steps."""


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Seconds; of one block unless said otherwise."""

    load: float
    """To read it."""
    capture: float
    """Per token, statistics gathered, in the stored dtype."""
    forward: float
    """Per token, in fp32."""
    head: float
    """Per token, in fp32, the whole head."""
    step: float
    """To run one token of every document of a sampled batch."""
    build: float
    """To build all variants."""
    store: float
    """To keep one variant in the library."""
    fresh: float
    """To start a fresh process that loads nothing."""
    groups: int
    """How many different inputs its linears have."""


def probe(run: Run, scratch: Path, advance: Callable[..., None]) -> UnitCosts:
    """Run and build block 0; ``advance`` is told when each of ``probe_steps`` is done."""
    captured = _Prober(run, run.capture_dtype, scratch / "captured")
    sites = linear_sites(captured.stream, 0)
    groups = [group for group in groups_of(run) if group.site.block == 0]
    places = [*sites, *(group.site for group in groups)]
    offered = [candidate for site in places for candidate in run.candidates_for(site)]
    observers: list[BlockObserver] = []

    def gather() -> None:
        observers.append(BlockObserver(needs_of(offered)))
        captured.run_block(observers[-1], sites)

    capture = _seconds(gather) / captured.tokens
    advance()
    load = _seconds(lambda: captured.stream.block(0))
    step = _Prober(run, run.capture_dtype, scratch / "step", steps=True).block_seconds()
    advance()
    parameters = captured.stream.parameters(0, captured.block)
    statistics = observers[-1].statistics()
    build = _build_seconds(run, sites, parameters, statistics, advance)
    for group in groups:
        seen = statistics.get(group.members[0].id)
        build += _seconds(partial(_build_group, run, group, seen))
    exact = _Prober(run, torch.float32, scratch / "exact")
    forward = exact.block_seconds() / exact.tokens
    advance()
    head = exact.head_seconds_per_token()
    advance()
    fresh = _once(lambda: ask_fresh_process(Loading(folder=scratch, task=run.skeleton.task)))
    advance(FRESH_STEPS)
    return UnitCosts(
        load=load,
        capture=capture,
        forward=forward,
        head=head,
        step=step,
        build=build,
        store=_seconds(partial(_store, Library(scratch / "library"))),
        fresh=fresh,
        groups=len(observers[-1].groups()),
    )


def probe_steps(run: Run) -> int:
    """How often a probe advances."""
    return 4 + FRESH_STEPS + len({site.shape for site in linear_sites(run.stream(), 0)})


class _Prober:
    """Block 0 with the inputs of one batch: windows, or one token of each sampled document."""

    def __init__(self, run: Run, dtype: torch.dtype, folder: Path, *, steps: bool = False) -> None:
        whole = run.calibration_inputs
        values = whole.values[: whole.batch_size]
        if steps:
            values = values.flatten()[:BATCH_DOCUMENTS, None]
        self.inputs = Inputs(whole.name, values, len(values))
        self.stream: Stream = run.stream(dtype=dtype)
        self.hidden, self.output = folder / "inputs.bin", folder / "outputs.bin"
        self.stem = self.stream.run_stem(self.inputs, self.hidden)
        self.block = self.stream.block(0)

    @property
    def tokens(self) -> int:
        return self.inputs.values.numel()

    def run_block(
        self, observer: BlockObserver | None = None, sites: list[Site] | None = None
    ) -> None:
        source = self.stream.file(self.hidden, self.stem)
        self.stream.run_block(
            0,
            self.block,
            self.stem,
            source.batches(self.inputs.rows, self.inputs.batch_size),
            output=self.output,
            observer=observer,
            watched=sites or (),
        )

    def block_seconds(self) -> float:
        return _seconds(self.run_block)

    def head_seconds_per_token(self) -> float:
        """On the first rows alone; reading the head is part of it, as it is in a measurement."""
        values = self.inputs.values[:HEAD_ROWS]
        part = Inputs(self.inputs.name, values, HEAD_ROWS)
        hidden = self.stream.file(self.output, self.stem)
        return (
            _seconds(lambda: list(self.stream.run_head(part, self.stem, hidden))) / values.numel()
        )


def _build_seconds(
    run: Run,
    sites: list[Site],
    parameters: Mapping[str, Tensor],
    statistics: Mapping[str, Statistics],
    advance: Callable[[], None],
) -> float:
    """Seconds to build all variants of one block: one site of each shape is built for real."""
    by_shape: dict[tuple[int, int], float] = {}
    total = 0.0
    for site in sites:
        if site.shape not in by_shape and site.id in statistics:
            W_OI = weight_of(site, parameters[site.parameter])
            seen = statistics[site.id]
            by_shape[site.shape] = _seconds(partial(_build, run, site, W_OI, seen))
            advance()
        total += by_shape.get(site.shape, 0.0)
    return total


def _build(run: Run, site: Site, W_OI: Tensor, statistics: Statistics) -> None:
    wanted = [WantedVariant(item, "", {}) for item in run.candidates_for(site)]
    if Statistic.OUTPUT_GRADIENT in needs_of(run.candidates_for(site)):
        statistics = replace(statistics, output_gradient=torch.ones(site.shape[0]))
    for _ in build_variants(site.id, W_OI, statistics, wanted):
        pass


def _build_group(run: Run, group: Group, statistics: Statistics | None) -> None:
    for item in run.candidates_for(group.site):
        build_group(group, group_tensors(run, group), statistics, WantedVariant(item, "", {}))


def _store(library: Library) -> None:
    """One small variant: what takes long is to have it safely on disk."""
    record = VariantRecord(key="probe", site="probe", candidate="probe")
    with library.building(record.key):
        library.store(record, {"weight": torch.zeros(1024, dtype=torch.uint8)})


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of some work, its first-time costs left out where it is short."""
    took = _once(work)
    return min(took, _once(work)) if took < LONG_SECONDS else took


def _once(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
