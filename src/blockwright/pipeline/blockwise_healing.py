"""Healing of a fitted folder one block at a time: the memory of one block, whatever the depth.

    for every block:  original's outputs on the original's inputs          (on disk)
                      -> tune what the folder stores of the block, on what the healed blocks in
                         front of it give
                      -> one file of its tensors

What is trained is what local healing of a plan trains: scales, factors, norms and biases.  Codes,
dense weights and tables stay.  The files are laid over the folder; at the end they are kept if the
selection text says so.  A killed run goes on at its block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from blockwright.checkpoint import Checkpoint, write_bytes_atomic, write_json_atomic
from blockwright.errors import AdapterError, ModelError, NumericalError
from blockwright.evaluate import FinalHidden, measure, run_to_file
from blockwright.formats import format_from_spec
from blockwright.pipeline.heal_summary import HealSummary
from blockwright.pipeline.measuring import loss_of
from blockwright.pipeline.proving import absent_parameters, open_fitted
from blockwright.pipeline.whole_healing import RATE, RUN_FILE, HealJob, stored_run
from blockwright.refine import LEAST_BATCHES, HealedBlocks, heal_blocks
from blockwright.stream import ActivationFile, Inputs, Stem, Stream
from blockwright.tuning import Tuned, TuningSettings
from blockwright.types import (
    HealRequest,
    PackedFormat,
    PackedLinear,
    Site,
    packed_name,
    parameter_name,
)

STEPS = 64
"""Of every block, unless others are asked."""
STEP_TOKENS = 1_024
"""Of a step, unless others are asked: a block's activations are most of what tuning adds."""
CHECKS = 8
MOMENT_BYTES = 8
"""Of Adam's moments, per number trained."""


def check_blockwise(request: HealRequest) -> None:
    """Raise ``AdapterError`` for options that mean nothing block by block."""
    asked = {
        "--adapter": request.adapter != "auto",
        "--optimizer": request.optimizer != "adam",
        "--minutes": request.minutes is not None,
        "--save-adapter": request.save_adapter is not None,
    }
    for option in (name for name, given in asked.items() if given):
        raise AdapterError(
            "--blockwise trains with Adam what the folder stores, for --steps in every block;"
            f" leave {option} out"
        )


@dataclass(frozen=True)
class HealedFolder:
    """What came out."""

    summary: HealSummary
    checkpoint: Checkpoint
    """The folder's, with the healed tensors where they are kept."""


def heal_blockwise(job: HealJob) -> HealedFolder:
    """Heal every block, and keep them all where the selection text says that they are better."""
    began = time.monotonic()
    if job.skeleton.num_blocks != job.original.skeleton.num_blocks:
        raise ModelError(
            f"{job.request.model} has {job.skeleton.num_blocks} blocks, its original"
            f" {job.original.skeleton.num_blocks}: no block tells what another shall give; leave"
            " --blockwise out"
        )
    stored_run(job)
    steps = job.request.steps or STEPS
    write_json_atomic(job.work / RUN_FILE, {"identity": job.identity, "steps": steps})
    rate, seed = job.request.rate or RATE, job.request.seed
    blocks = _Blocks(job, TuningSettings(steps=steps, rate=rate, checks=CHECKS, seed=seed))
    blocks.heal_all()
    before, after = blocks.judged()
    kept = after < before
    sizes = [int(blocks.told(index)["numbers"]) for index in blocks.indices]
    summary = HealSummary(
        adapters={"blockwise": len(blocks.packed_sites)},
        trainable=sum(sizes),
        parameters=sum(t.numel() for t in job.skeleton.parameters.values()),
        optimizer_bytes=MOMENT_BYTES * max(sizes, default=0),
        steps=steps,
        best_step=steps if kept else 0,
        tokens_per_step=blocks.inputs.batch_size * job.texts.calibration.sequence_length,
        loss_before=before,
        loss_after=min(before, after),
        seconds=time.monotonic() - began,
    )
    return HealedFolder(summary, blocks.checkpoint if kept else job.checkpoint)


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a job: where they are, what they are tuned to, where results go."""

    job: HealJob
    settings: TuningSettings

    @property
    def indices(self) -> range:
        return range(self.job.skeleton.num_blocks)

    def path(self, index: int) -> Path:
        """Tensors of a healed block, under the folder's own names."""
        return self.job.work / f"block-{index:04d}.safetensors"

    @property
    def checkpoint(self) -> Checkpoint:
        """The folder with the blocks that are healed by now."""
        done = [path for path in map(self.path, self.indices) if path.is_file()]
        return self.job.checkpoint.overlaid(done)

    def stream(self, checkpoint: Checkpoint) -> Stream:
        request = self.job.request
        return open_fitted(
            self.job.fitted, request.trust_remote_code, request.device, checkpoint=checkpoint
        )

    @cached_property
    def packed_sites(self) -> dict[str, Site]:
        """Sites of blocks that the folder stores packed, by id."""
        sites = self.job.skeleton.sites
        return {s.id: s for s in sites if s.id in self._specs and s.block is not None}

    @cached_property
    def _config(self) -> dict[str, dict[str, dict[str, object]]]:
        return getattr(self.job.skeleton.config, "quantization_config", None) or {}

    @property
    def _specs(self) -> dict[str, dict[str, object]]:
        return self._config.get("sites", {})

    @cached_property
    def inputs(self) -> Inputs:
        """Rows to train on, in batches: as many as the steps take, a fifth more to judge by."""
        text = self.job.texts.calibration
        wanted = (self.job.request.batch_tokens or STEP_TOKENS) // text.sequence_length
        size = max(1, min(wanted, len(text.ids) // LEAST_BATCHES))
        rows = max(LEAST_BATCHES * size, math.ceil(1.25 * self.settings.steps * size))
        return Inputs("input_ids", text.ids[:rows], size)

    @cached_property
    def untrained(self) -> set[str]:
        """Parameters that are not there, or that the folder does not store under their names."""
        skeleton, stored = self.job.skeleton, self.job.checkpoint
        absent = absent_parameters(skeleton, self._config.get("parts", {}))
        return {*absent, *(name for name in skeleton.parameters if name not in stored)}

    def heal_all(self) -> None:
        """Walk the blocks, one at a time."""
        stream = self.stream(self.job.checkpoint)
        original = _OriginalBlocks(self.job, self.inputs)
        blocks = HealedBlocks(
            is_done=lambda index: self.path(index).is_file(),
            block=lambda index: self.stream(self.checkpoint).block(index),
            packed=self.packed,
            target=lambda index, stem: original.outputs(index),
            absent=self.untrained,
            heal=self.heal,
        )
        progress, count = self.job.progress, len(self.indices)
        with progress.stage("heal block by block", count, "blocks") as stage:
            folder = self.job.work / "healed"
            heal_blocks(stream, self.inputs, folder, blocks, self.settings, stage.advance)
            for index in self.indices:
                if note := self.told(index)["note"]:
                    stage.note(f"block {index} stays as it is: {note}")

    def told(self, index: int) -> dict[str, str]:
        """What is written beside a block's tensors."""
        with safe_open(self.path(index), "pt") as file:
            found: dict[str, str] = file.metadata()
        return found

    def packed(self, index: int) -> dict[Site, PackedLinear]:
        """Portable modules of a block's packed sites."""
        found = {}
        for site in (s for s in self.packed_sites.values() if s.block == index):
            module, prefix = self.empty(site), site.stored_prefix
            names = module.stored_names
            module.load_stored({name: self.job.checkpoint.read(prefix + name) for name in names})
            found[site] = module
        return found

    def empty(self, site: Site) -> PackedLinear:
        """The module of a packed site, without its tensors."""
        format = format_from_spec(self._specs[site.id])
        if not isinstance(format, PackedFormat):
            raise TypeError(f"{site.id}: {format.name} has no packed tensors")
        return format.empty(site.shape, bias=False, dtype=torch.float32)

    def heal(self, index: int, tune: Callable[[], Tuned]) -> None:
        """Store the tuned tensors of a block; none where nothing was better on held-back text."""
        tensors: dict[str, Tensor] = {}
        try:
            tuned = tune()
        except NumericalError as error:
            note = str(error)
        else:
            note = "" if tuned.step else "no moment of tuning was better on held text"
            tensors = self.named(index, tuned) if tuned.step else {}
        data = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        numbers = sum(tensor.numel() for tensor in data.values())
        write_bytes_atomic(self.path(index), save(data, {"note": note, "numbers": str(numbers)}))

    def named(self, index: int, tuned: Tuned) -> dict[str, Tensor]:
        """Tuned tensors under the folder's names, as it stores them."""
        names = {
            packed_name(site.id, name): site.stored_prefix + name
            for site in self.packed_sites.values()
            if site.block == index
            for name in self.empty(site).stored_names
        }
        names |= {parameter_name(name): name for name in self.job.skeleton.parameters}
        found = {names[name]: tensor for name, tensor in tuned.tensors.items()}
        return {name: t.to(self.job.checkpoint.dtype(name)) for name, t in found.items()}

    def judged(self) -> tuple[float, float]:
        """The loss on the selection text, before and after."""
        inputs = Inputs.of_tokens(self.job.texts.selection.ids)
        streams = {
            "original": self.job.original_stream(),
            "before": self.stream(self.job.checkpoint),
            "after": self.stream(self.checkpoint),
        }
        hidden: dict[str, FinalHidden] = {}
        parts = sum(len(stream.blocks) for stream in streams.values())
        with self.job.progress.stage("choose on the selection text", parts, "blocks") as stage:
            for name, stream in streams.items():
                path = self.job.work / f"selection-{name}.bin"
                hidden[name] = run_to_file(stream, inputs, path, stage.advance)
            before, after = (measure(hidden[n], hidden["original"]) for n in ("before", "after"))
        return loss_of(before), loss_of(after)


class _OriginalBlocks:
    """The original's hidden states, one block after another; only the last ones are on disk."""

    def __init__(self, job: HealJob, inputs: Inputs) -> None:
        self._stream, self._inputs = job.original_stream(), inputs
        self._folder = job.work / "original"

    @cached_property
    def _stem(self) -> Stem:
        return self._stream.run_stem(self._inputs, self._folder / "stem.bin")

    def _file(self, position: int) -> ActivationFile:
        return self._stream.file(self._folder / f"hidden-{position:04d}.bin", self._stem)

    def outputs(self, index: int) -> ActivationFile:
        """Hidden states behind a block, from the last ones that are there."""
        wanted, rows = index + 1, self._inputs.rows
        done = [p for p in range(wanted, 0, -1) if self._file(p).is_complete(rows)]
        current = (
            self._file(done[0])
            if done
            else self._stream.file(self._folder / "stem.bin", self._stem)
        )
        for position in range(done[0] if done else 0, wanted):
            block = self._stream.block(position)
            batches = current.batches(rows, self._inputs.batch_size)
            following = self._file(position + 1)
            self._stream.run_block(position, block, self._stem, batches, output=following.path)
            if position:
                current.path.unlink()
            current = following
        return current
