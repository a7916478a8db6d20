"""How much the loss feels each linear's output: the reverse sweep of a run, kept in the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture import (
    hidden_mean_square,
    inputs_path,
    probe_loss,
    reverse_sweep,
    sampled_label_loss,
)
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.presets import REVERSE_TOKENS
from blockwright.pipeline.sweeping import sweep_original
from blockwright.stream import Inputs, Loss, Stem, Stream
from blockwright.types import Site


def reverse_inputs(run: Run) -> Inputs:
    """The calibration rows that the reverse sweep runs over."""
    return run.calibration_inputs.first(REVERSE_TOKENS[run.request.preset])


def sensitivity_note(run: Run) -> str:
    """On what the sensitivities stand, for people."""
    tokens = reverse_inputs(run).values.numel()
    if run.skeleton.task == "causal-lm":
        return f"sensitivity: {tokens} calibration tokens, labels drawn from the model itself"
    return (
        f"sensitivity: {tokens} calibration tokens, random probes of the last hidden state, for"
        " the model has no language head; losses are its squared relative error"
    )


def moments_key(run: Run) -> str:
    """Digest of what the sensitivities stand on."""
    return digest_of([run.statistics_digest, reverse_inputs(run).rows, run.request.seed])


def site_moments(run: Run, site: Site) -> Tensor:
    """Diagonal of G at one site, fp32 [O], once ``output_moments`` was called; 0 where no token of
    the reverse sweep reached it.
    """
    found = run.library.arrays(f"moments-{moments_key(run)}-{site.block}")
    if found is None:
        raise RuntimeError(f"{site.id}: the reverse sweep has not reached its block")
    return found.get(site.id, torch.zeros(site.shape[0]))


def output_moments(run: Run) -> dict[str, Tensor]:
    """Diagonal of G by site id, fp32 [O]; sites that no token reached are missing.

    What the library has is not computed again; a killed sweep resumes at its block.
    """
    key = moments_key(run)
    blocks = range(run.skeleton.num_blocks)
    found = {index: run.library.arrays(f"moments-{key}-{index}") for index in blocks}
    missing = [index for index, moments in found.items() if moments is None]
    for index, moments in _swept(run, missing):
        run.library.store_arrays(f"moments-{key}-{index}", moments)
        found[index] = dict(moments)
    return {site: G_O for moments in found.values() for site, G_O in (moments or {}).items()}


def _swept(run: Run, missing: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """The reverse sweep's moments of some blocks; gradients stay in the work folder."""
    if not missing:
        return
    inputs = reverse_inputs(run)
    with run.progress.stage("measure sensitivity", len(missing), "blocks") as stage:
        stream = sweep_original(run)
        folder = run.library.work_folder(f"reverse-{moments_key(run)}")
        swept = run.library.work_folder(run.statistics_digest)
        stem = stream.run_stem(inputs, folder / "stem.bin")
        loss = _loss(run, stream, inputs, stem, swept)
        for found in reverse_sweep(stream, inputs, stem, swept, folder, loss, missing):
            yield found
            stage.advance()


def _loss(run: Run, stream: Stream, inputs: Inputs, stem: Stem, swept: Path) -> Loss:
    if run.skeleton.task == "causal-lm":
        return sampled_label_loss(run.request.seed)
    hidden = stream.file(inputs_path(swept, run.skeleton.num_blocks), stem)
    return probe_loss(run.request.seed, hidden_mean_square(stream, inputs, stem, hidden))
