"""Calibration text that the model writes itself, mixed with the text that was given or shipped.

A model was trained on text that nobody but itself remembers; what it writes is of that kind.  The
other part stays real text: a model says nothing of what it is bad at.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from blockwright.evaluate import BATCH_DOCUMENTS, Loading, Sampling, sample_documents
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.presets import SAMPLED_SHARE
from blockwright.pipeline.proving import available_bytes
from blockwright.texts import TokenSet, load_tokenizer, mix_windows, opening_tokens, token_set

SAMPLER_VERSION = 1
DOCUMENT_TOKENS = 512
"""Longest sampled document; longer windows hold several."""
LARGEST_WORK = 1.5e13
"""Weights times sampled tokens: ten minutes at 50 GFLOP/s.  Counted, not timed, so that every
machine decides alike.
"""
PROCESS_BYTES = 700_000_000
"""Resident memory of a fresh process beside its model."""


@dataclass(frozen=True)
class Sampled:
    """How many windows of the calibration the model writes, or why none."""

    windows: int
    reason: str = ""


def with_sampled_text(run: Run) -> Run:
    """The run with its share of the calibration text sampled from the model; said in its notes.

    Sampled once: tokens and the decision are kept in the library.  Raises ``ModelError`` when the
    sampling process fails.
    """
    texts, wanted = run.texts, wanted_windows(run)
    given = run.request.calibration
    origin = f"from {given}" if given else "shipped with Blockwright (Python's standard library)"
    if not wanted.windows and not wanted.reason:
        notes = (f"calibration text: {origin}",) if given is None else ()
        return replace(run, texts=replace(texts, notes=(*notes, *texts.notes)))
    ids, reason = _sampled_ids(run, wanted) if wanted.windows else (None, wanted.reason)
    if ids is None:
        note = f"calibration text: {origin}; none sampled from the model itself: {reason}"
        return replace(run, texts=replace(texts, notes=(note, *texts.notes)))
    rest = texts.calibration.ids[: len(texts.calibration.ids) - len(ids)]
    calibration = _mixed(rest, ids)
    note = (
        f"calibration text: {ids.numel()} tokens sampled from the model itself, {rest.numel()}"
        f" {origin}"
    )
    return replace(run, texts=replace(texts, calibration=calibration, notes=(note, *texts.notes)))


def wanted_windows(run: Run) -> Sampled:
    """What is decided before memory is looked at: by the request and the model's size."""
    share = run.request.sampled_share
    if share is None:
        share = 0.0 if run.request.calibration else SAMPLED_SHARE[run.request.preset]
    windows, length = run.texts.calibration.ids.shape
    wanted = round(share * windows)
    if not wanted:
        return Sampled(0)
    if run.skeleton.task != "causal-lm":
        return Sampled(0, "it has no language head")
    affordable = int(LARGEST_WORK / (run.skeleton.linear_weights * length))
    if not affordable:
        weights = run.skeleton.linear_weights
        return Sampled(0, f"its {weights:.3g} weights would take too long")
    return Sampled(min(wanted, affordable))


def documents_of(windows: int, length: int) -> tuple[int, int]:
    """Number and tokens of the documents that fill windows, each window starting with one."""
    per_window = ceil(length / DOCUMENT_TOKENS)
    return windows * per_window, ceil(length / per_window)


def needed_bytes(run: Run, windows: int) -> float:
    """Upper estimate of the sampling process's memory: model, KV cache, logits of one step."""
    config = run.skeleton.config.get_text_config()
    documents, length = documents_of(windows, run.texts.calibration.sequence_length)
    rows = min(documents, BATCH_DOCUMENTS)
    row = 2 * run.skeleton.num_blocks * int(config.hidden_size) * run.capture_dtype.itemsize
    logits = 3 * 4 * rows * int(config.vocab_size)
    model = 1.2 * run.original.checkpoint.total_file_bytes
    return PROCESS_BYTES + model + rows * length * row + logits


def _sampled_ids(run: Run, wanted: Sampled) -> tuple[Tensor | None, str]:
    """Windows [S, T] from the library or the model; None and the reason when memory is short."""
    sampling = _sampling(run, wanted.windows)
    key = digest_of(
        [
            *(run.original.fingerprint, run.surroundings, SAMPLER_VERSION, sampling.batch_rows()),
            *(sampling.length, list(sampling.start), sampling.end, sampling.seed),
        ]
    )
    known = run.library.result(key)
    if known is None:
        known = _sample(run, sampling, key, needed_bytes(run, wanted.windows))
        run.library.store_result(key, known)
    if known["skipped"]:
        return None, str(known["skipped"])
    length = run.texts.calibration.sequence_length
    rows = torch.tensor(known["ids"]).view(wanted.windows, -1)
    return rows[:, :length].contiguous(), ""


def _sampling(run: Run, windows: int) -> Sampling:
    request = run.request
    folder = run.original.source.path
    tokenizer = load_tokenizer(folder, trust_remote_code=request.trust_remote_code)
    documents, length = documents_of(windows, run.texts.calibration.sequence_length)
    return Sampling(
        documents=documents,
        length=length,
        start=tuple(opening_tokens(tokenizer)),
        end=tokenizer.eos_token_id,
        seed=request.seed,
    )


def _sample(run: Run, sampling: Sampling, key: str, needed: float) -> dict[str, Any]:
    """What the library keeps: ids, or why there are none."""
    free = _free_bytes(run.request.device)
    if needed > free:
        reason = f"it needs {needed:.3g} bytes and {free:.3g} were free"
        return {"skipped": f"{reason} (another --library tries again)", "ids": []}
    loading = Loading(
        folder=run.original.source.path,
        task=run.skeleton.task,
        device=run.request.device,
        trust_remote_code=run.request.trust_remote_code,
    )
    folder = run.library.work_folder(f"sample-{key}")
    total = sampling.documents * sampling.length
    with run.progress.stage("sample calibration text", total, "tokens") as stage:
        ids = sample_documents(loading, sampling, folder, stage.advance)
    shutil.rmtree(folder, ignore_errors=True)
    return {"skipped": "", "ids": ids.tolist()}


def _free_bytes(device: str) -> float:
    if device == "cpu":
        return available_bytes()
    return min(available_bytes(), torch.cuda.mem_get_info(device)[0])


def _mixed(real: Tensor, sampled: Tensor) -> TokenSet:
    """Both kinds evenly over the whole, so that any first part of it holds both."""
    return token_set(mix_windows(real.tolist(), sampled.tolist()), "mixed calibration text")
