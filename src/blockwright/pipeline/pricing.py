"""The price of a run: one block is probed, the rest is arithmetic."""

from __future__ import annotations

import os
import shutil

from blockwright.capture import linear_sites
from blockwright.evaluate import BATCH_DOCUMENTS
from blockwright.pipeline.attending import policies_on_offer
from blockwright.pipeline.caching import caches_on_offer
from blockwright.pipeline.dropping import MEASURED_DROPS
from blockwright.pipeline.fuse_options import MEASURED_FUSED
from blockwright.pipeline.fusing import blocks_to_fuse
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.lossless_price import price_lossless
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.presets import (
    HEALING,
    MATCHING,
    MEASURED_TOKENS,
    REFINED,
    REVERSE_TOKENS,
    ROUNDS,
)
from blockwright.pipeline.probing import UnitCosts, probe, probe_steps
from blockwright.pipeline.proving import SPEED_PREFILL_TOKENS, fresh_seconds, peak_rss_bytes
from blockwright.pipeline.sampling import documents_of, wanted_windows
from blockwright.pipeline.weighing import check_limits
from blockwright.plan import families_of
from blockwright.progress import Progress, SilentProgress
from blockwright.refine import LEAST_BATCHES, healing_inputs
from blockwright.registry import resolve
from blockwright.stream import BATCH_TOKENS
from blockwright.stream.executor import CHUNK_LOGIT_BYTES
from blockwright.types import FitRequest, FuseFormat, FusingMethod, Price, SiteKind, WidthFormat

RIVALS = 2
"""The solved plan and the uniform one."""
BACKWARD_COST = 3.0
"""A forward and a backward pass, in forward passes; tuning dequantizes beside them."""
TUNING_COST = 4.0
SAVED_COPIES = 2
"""Inputs and outputs of a block's linears, kept for its backward pass."""
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
    if request.lossless:
        return price_lossless(request, progress or SilentProgress())
    run = open_run(request, progress or SilentProgress())
    check_limits(run, timed=False)
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
    candidates, preset = max(1, len(run.candidates)), run.request.preset
    families = families_of(map(str, run.candidates))
    plans = 1 + ROUNDS[preset] + _refined_plans(run) + (HEALING[preset] is not None)
    plans += len(families) if len(families) > 1 else 0
    # one whole forward, and for every group one that ends there (two: the original's beside it)
    passes = 1 + (2 if MATCHING[preset] else 1) * (costs.groups + 1) / 2
    refined = blocks * (calibration * costs.capture * passes + costs.load)
    linears = sum(site.kind is SiteKind.LINEAR for site in run.skeleton.sites)
    refined += blocks * costs.build / candidates + linears * costs.store
    variants = sum(len(run.candidates_for(site)) for site in run.skeleton.sites if site.parameter)
    variants += sum(len(run.candidates_for(group.site)) for group in groups_of(run))
    parts = {
        "read": size / READ_BYTES_PER_SECOND,
        "sample": _sampling_seconds(run, costs),
        "calibrate": blocks * (costs.load + costs.capture * calibration),
        "build": blocks * costs.build + variants * costs.store + _fusing_seconds(run, costs),
        "sensitivity": _sensitivity_seconds(run, costs),
        "refine": _refined_plans(run) * refined,
        "heal": _healing_seconds(run, costs),
        "measure": _measure_seconds(run, costs, selection, 1 + plans, 2 * plans)
        + _measure_seconds(run, costs, heldout, 1 + RIVALS, 1 + 2 * RIVALS)
        + _changes_seconds(run, costs),
        "reload and time": fresh_seconds(size, 1, costs.fresh),
    }
    if run.request.heal is not None:
        parts["heal as a whole"] = 60 * run.request.heal
    if run.request.speed:
        prefill = 3 * SPEED_PREFILL_TOKENS * blocks * costs.forward
        parts["reload and time"] += fresh_seconds(size, 2, costs.fresh) + 2 * prefill
    return parts


def _refined_plans(run: Run) -> int:
    return RIVALS if REFINED[run.request.preset] else 0


def _measure_seconds(run: Run, costs: UnitCosts, tokens: int, models: int, heads: int) -> float:
    """Streaming some models over a text, and some passes of the head over what came out."""
    blocks = run.skeleton.num_blocks
    return models * blocks * (costs.load + tokens * costs.forward) + heads * tokens * costs.head


def _sensitivity_seconds(run: Run, costs: UnitCosts) -> float:
    """The reverse sweep: forward and backward through every block and the head."""
    tokens = run.calibration_inputs.first(REVERSE_TOKENS[run.request.preset]).values.numel()
    passes = run.skeleton.num_blocks * (costs.load + BACKWARD_COST * tokens * costs.capture)
    return passes + BACKWARD_COST * tokens * costs.head


def _healing_seconds(run: Run, costs: UnitCosts) -> float:
    """Tuning every block, judging it on a fifth of the text, and running it on."""
    settings, inputs = HEALING[run.request.preset], run.calibration_inputs
    if settings is None:
        return 0.0
    batch = healing_inputs(inputs, BATCH_TOKENS).batch_size * inputs.values.shape[1]
    judged = (settings.checks + 1) * inputs.values.numel() / LEAST_BATCHES
    tokens = settings.window * (TUNING_COST * settings.steps * batch + judged)
    tokens += inputs.values.numel()
    return run.skeleton.num_blocks * (costs.load + tokens * costs.forward)


def _fusing_seconds(run: Run, costs: UnitCosts) -> float:
    """Tuning a block to do its neighbour's work; its statistics where its matrices are packed."""
    inputs, seconds = run.calibration_inputs, 0.0
    batch = healing_inputs(inputs, BATCH_TOKENS).batch_size * inputs.values.shape[1]
    for site in blocks_to_fuse(run):
        for candidate in run.candidates_for(site):
            format, (method, *_) = resolve(candidate)
            if isinstance(format, FuseFormat) and isinstance(method, FusingMethod):
                judged = (method.checks + 1) * inputs.values.numel() / LEAST_BATCHES
                tokens = TUNING_COST * method.steps * batch + judged
                seconds += 2 * costs.load + tokens * costs.forward
                packs = format.values is not None
                seconds += packs * (inputs.values.numel() * costs.capture + costs.build)
    return seconds


def _changes_seconds(run: Run, costs: UnitCosts) -> float:
    """Tables, dropped blocks and parts, and KV caches, each measured by itself on some calibration
    text.
    """
    tables = sum(len(run.candidates_for(site)) for site in run.skeleton.tables)
    changes = MEASURED_DROPS * run.skeleton.num_blocks * run.drops_blocks
    narrower = sum(isinstance(resolve(c)[0], WidthFormat) for c in run.candidates)
    changes += narrower * run.skeleton.num_blocks
    changes += MEASURED_FUSED * sum(len(run.candidates_for(site)) for site in blocks_to_fuse(run))
    changes += sum(len(offer.formats) for offer in caches_on_offer(run))
    changes += sum(len(offer.policies) for offer in policies_on_offer(run))
    if not tables + changes:
        return 0.0
    tokens = run.calibration_inputs.first(MEASURED_TOKENS[run.request.preset]).values.numel()
    models = 2 + tables + -(-changes // 2)  # from the block that changes on: half of them
    return _measure_seconds(run, costs, tokens, models, 2 * (tables + changes))


def _sampling_seconds(run: Run, costs: UnitCosts) -> float:
    """Text that the model writes itself: all steps of all batches, and a process to do them."""
    windows = wanted_windows(run).windows
    if not windows:
        return 0.0
    documents, length = documents_of(windows, run.texts.calibration.sequence_length)
    batches = -(-documents // BATCH_DOCUMENTS)
    steps = batches * length * run.skeleton.num_blocks * costs.step
    steps += documents * length * costs.head
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
    widths = sum(sum(site.shape) for site in linear_sites(run.stream(), 0) if site.expert is None)
    saved = SAVED_COPIES * 4 * widths * BATCH_TOKENS
    held = block + grams + 3 * 4 * inputs[-1] ** 2 + outside + logits + saved
    return peak_rss_bytes() + held + OVERHEAD_BYTES


def _disk(run: Run) -> int:
    """Library, hidden states and the output folder."""
    library = 0
    for site in run.skeleton.sites:
        if site.parameter:
            for candidate in run.candidates_for(site):
                library += run.stored_bytes(candidate, site) + RECORD_BYTES
    for group in groups_of(run):
        for candidate in run.candidates_for(group.site):
            stored = sum(run.stored_bytes(candidate, member) for member in group.members)
            library += stored + RECORD_BYTES
    width = int(run.skeleton.config.get_text_config().hidden_size)
    calibration = run.texts.calibration.tokens * run.capture_dtype.itemsize
    hidden = width * calibration * (run.skeleton.num_blocks + 1 + 2 * _refined_plans(run))
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
