"""The price of a run: one block is probed, the rest is arithmetic."""

from __future__ import annotations

import os
import shutil

from blockwright.capture import linear_sites
from blockwright.evaluate import BATCH_DOCUMENTS
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.probing import UnitCosts, probe, probe_steps
from blockwright.pipeline.proving import SPEED_PREFILL_TOKENS, fresh_seconds, peak_rss_bytes
from blockwright.pipeline.sampling import documents_of, wanted_windows
from blockwright.progress import Progress, SilentProgress
from blockwright.stream import BATCH_TOKENS
from blockwright.stream.executor import CHUNK_LOGIT_BYTES
from blockwright.types import FitRequest, Price, SiteKind

RIVALS = 2
"""Plans that are measured and refined: the solved one and the uniform one."""
READ_BYTES_PER_SECOND = 1e9
"""Reading and hashing the checkpoint."""
OVERHEAD_BYTES = 120_000_000
"""What allocator and one batch take beside blocks and Grams."""
LOGIT_COPIES = 10
"""Chunks of logits that are there at once: of two models, in two dtypes, and what is computed."""
RECORD_BYTES = 1_500
"""A variant's record in the library."""


def price(request: FitRequest, progress: Progress | None = None) -> Price:
    """Memory, disk and seconds that ``fit`` will take, from one block's capture and builds."""
    run = open_run(request, progress or SilentProgress())
    scratch = run.library.work_folder(f"probe-{os.getpid()}")
    with run.progress.stage("probe one block", probe_steps(run), "steps") as stage:
        try:
            costs = probe(run, scratch, stage.advance)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    parts = _seconds_by_stage(run, costs)
    return Price(
        memory_bytes=_memory(run), disk_bytes=_disk(run), seconds=sum(parts.values()), parts=parts
    )


def _seconds_by_stage(run: Run, costs: UnitCosts) -> dict[str, float]:
    blocks, calibration = run.skeleton.num_blocks, run.texts.calibration.tokens
    selection, heldout = run.texts.selection.tokens, run.texts.heldout.tokens
    size = run.original.checkpoint.total_file_bytes
    candidates = max(1, len(run.candidates))
    refined = blocks * (calibration * costs.capture * (costs.groups + 1) + costs.load)
    linears = sum(site.kind is SiteKind.LINEAR for site in run.skeleton.sites)
    refined += blocks * costs.build / candidates + linears * costs.store
    variants = sum(len(run.candidates_for(site)) for site in run.skeleton.sites if site.parameter)
    parts = {
        "read": size / READ_BYTES_PER_SECOND,
        "sample": _sampling_seconds(run, costs),
        "calibrate": blocks * (costs.load + costs.capture * calibration),
        "build": blocks * costs.build + variants * costs.store,
        "refine": RIVALS * refined,
        "measure": _measure_seconds(run, costs, selection, 1 + 2 * RIVALS, 4 * RIVALS)
        + _measure_seconds(run, costs, heldout, 1 + RIVALS, 1 + 2 * RIVALS),
        "reload and time": fresh_seconds(size, 1, costs.fresh),
    }
    if run.request.speed:
        prefill = 3 * SPEED_PREFILL_TOKENS * blocks * costs.forward
        parts["reload and time"] += fresh_seconds(size, 2, costs.fresh) + 2 * prefill
    return parts


def _measure_seconds(run: Run, costs: UnitCosts, tokens: int, models: int, heads: int) -> float:
    """Streaming some models over a text, and some passes of the head over what came out."""
    blocks = run.skeleton.num_blocks
    return models * blocks * (costs.load + tokens * costs.forward) + heads * tokens * costs.head


def _sampling_seconds(run: Run, costs: UnitCosts) -> float:
    """Text that the model writes itself: all steps of all batches, and a process to do them."""
    windows = wanted_windows(run).windows
    if not windows:
        return 0.0
    documents, length = documents_of(windows, run.texts.calibration.sequence_length)
    batches = -(-documents // BATCH_DOCUMENTS)
    steps = batches * length * run.skeleton.num_blocks * costs.step
    return fresh_seconds(run.original.checkpoint.total_file_bytes, 1, costs.fresh) + steps


def _memory(run: Run) -> int:
    """What this process holds now, one block in fp32, its Grams, and three of the largest."""
    inputs = sorted({site.shape[1] for site in linear_sites(run.stream(), 0)})
    grams = 4 * (sum(width**2 for width in inputs) + inputs[0] ** 2)
    block = 4 * sum(
        run.skeleton.parameters[name].numel() for name in run.skeleton.parameters_of_block(0)
    )
    outside = max(run.skeleton.stem_bytes, run.skeleton.head_bytes)
    vocabulary = getattr(run.skeleton.config.get_text_config(), "vocab_size", 0)
    logits = LOGIT_COPIES * min(CHUNK_LOGIT_BYTES, 4 * int(vocabulary) * BATCH_TOKENS)
    held = block + grams + 3 * 4 * inputs[-1] ** 2 + outside + logits
    return peak_rss_bytes() + held + OVERHEAD_BYTES


def _disk(run: Run) -> int:
    """Library, hidden states and the output folder."""
    library = 0
    for site in run.skeleton.sites:
        if site.parameter:
            for candidate in run.candidates_for(site):
                library += run.stored_bytes(candidate, site) + RECORD_BYTES
    width = int(run.skeleton.config.get_text_config().hidden_size)
    calibration = run.texts.calibration.tokens * run.capture_dtype.itemsize
    hidden = width * calibration * (run.skeleton.num_blocks + 1 + RIVALS)
    measured = 4 * width * (run.texts.selection.tokens + run.texts.heldout.tokens)
    fitted = _fitted_bytes(run)
    return library + hidden + 3 * measured + (1 + RIVALS) * fitted


def _fitted_bytes(run: Run) -> int:
    """Size of the folder that was asked for; a refined plan takes as much again in the library."""
    original, budget = run.original.checkpoint.total_file_bytes, run.request.budget
    if budget is None:
        return run.edited.size_bytes if run.edited else original
    if budget.bits is None:
        return min(original, budget.size_bytes or int((budget.ratio or 1.0) * original))
    linear = sum(site.weights for site in run.skeleton.sites if site.kind is SiteKind.LINEAR)
    dense = linear * run.capture_dtype.itemsize
    return original - dense + int(budget.bits * linear / 8)
