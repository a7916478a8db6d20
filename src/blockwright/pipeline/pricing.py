"""The price of a run: one block is probed, the rest is arithmetic."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from blockwright.capture import BlockObserver, linear_sites
from blockwright.library.build import WantedVariant, build_variants, needs_of
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.proving import peak_rss_bytes
from blockwright.progress import Progress, SilentProgress
from blockwright.stream import Inputs, weight_of
from blockwright.types import FitRequest, Price, Site, SiteKind, Statistics

FRESH_PROCESS_SECONDS = 12.0
"""Import and load of one fresh process; three are started."""
EVALUATED_MODELS = 3
OVERHEAD_BYTES = 300_000_000
"""What allocator, logits and one batch take beside blocks and Grams."""


def price(request: FitRequest, progress: Progress | None = None) -> Price:
    """Memory, disk and seconds that ``fit`` will take, from one block's capture and builds."""
    run = open_run(request, progress or SilentProgress())
    with run.progress.stage("probe one block"), tempfile.TemporaryDirectory() as scratch:
        return _probe(run, Path(scratch))


def _probe(run: Run, scratch: Path) -> Price:
    stream = run.stream(dtype=run.capture_dtype)
    inputs = run.calibration_inputs
    one = Inputs(inputs.name, inputs.values[: inputs.batch_size], inputs.batch_size)
    stem = stream.run_stem(one, scratch / "inputs.bin")
    block = stream.block(0)
    sites = linear_sites(stream, 0)
    candidates = {site.id: run.candidates_for(site) for site in sites}
    offered = [candidate for items in candidates.values() for candidate in items]
    observer = BlockObserver(needs_of(offered))
    began = time.monotonic()
    batches = stream.file(scratch / "inputs.bin", stem).batches(one.rows, one.batch_size)
    stream.run_block(
        0, block, stem, batches, output=scratch / "out.bin", observer=observer, watched=sites
    )
    forward = (time.monotonic() - began) / one.values.numel()
    parameters = stream.parameters(0, block)
    building = _build_seconds(run, sites, parameters, observer.statistics())
    return _total(run, forward, building)


def _build_seconds(
    run: Run,
    sites: list[Site],
    parameters: Mapping[str, Tensor],
    statistics: Mapping[str, Statistics],
) -> float:
    """Seconds to build all variants of one block: one site of each shape is built for real."""
    by_shape: dict[tuple[int, int], float] = {}
    total = 0.0
    for site in sites:
        if site.shape not in by_shape and site.id in statistics:
            began = time.monotonic()
            wanted = [WantedVariant(item, "", {}) for item in run.candidates_for(site)]
            W_OI = weight_of(site, parameters[site.parameter])
            for _ in build_variants(site.id, W_OI, statistics[site.id], wanted):
                pass
            by_shape[site.shape] = time.monotonic() - began
        total += by_shape.get(site.shape, 0.0)
    return total


def _total(run: Run, forward: float, building: float) -> Price:
    """``forward``: seconds per token of one block; ``building``: of one block's variants."""
    blocks, texts = run.skeleton.num_blocks, run.texts
    candidates = max(1, len(run.candidates))
    calibration = texts.calibration.tokens
    measured = texts.selection.tokens * (EVALUATED_MODELS + 2)
    measured += texts.heldout.tokens * EVALUATED_MODELS
    groups = 5.0
    parts = {
        "calibrate": forward * calibration * blocks,
        "build": building * blocks,
        "refine": 2 * (forward * calibration * blocks * groups + building * blocks / candidates),
        "measure": 3 * forward * measured * blocks,
        "reload and time": 3 * FRESH_PROCESS_SECONDS,
    }
    return Price(
        memory_bytes=_memory(run), disk_bytes=_disk(run), seconds=sum(parts.values()), parts=parts
    )


def _memory(run: Run) -> int:
    """What this process holds now, one block in fp32, its Grams, and three of the largest."""
    inputs = sorted({site.shape[1] for site in linear_sites(run.stream(), 0)})
    grams = 4 * (sum(width**2 for width in inputs) + inputs[0] ** 2)
    block = 4 * sum(
        run.skeleton.parameters[name].numel() for name in run.skeleton.parameters_of_block(0)
    )
    outside = max(run.skeleton.stem_bytes, run.skeleton.head_bytes)
    return peak_rss_bytes() + block + grams + 3 * 4 * inputs[-1] ** 2 + outside + OVERHEAD_BYTES


def _disk(run: Run) -> int:
    """Library, hidden states and the output folder."""
    library = 0
    for site in run.skeleton.sites:
        if site.kind is SiteKind.LINEAR:
            for candidate in run.candidates_for(site):
                library += run.stored_bytes(candidate, site)
    width = int(run.skeleton.config.get_text_config().hidden_size)
    row = width * run.capture_dtype.itemsize
    hidden = run.texts.calibration.tokens * row * (run.skeleton.num_blocks + 1)
    return library + hidden + run.original.checkpoint.total_file_bytes
