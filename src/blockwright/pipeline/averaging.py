"""``blockwright merge --with``: models of one architecture, averaged unit by unit.

    blocks of all models on the same text -> activations of FFN channels and of heads
    -> every model's units in the order of the first one's -> mean of all tensors

A model whose units are in another order computes the same; a mean of two orders computes nothing.
Channels and key-value heads are those that ``narrow`` finds (``anatomy.find_parts``), and an order
is taken only where the block then gives what it gave.  The residual stream keeps its order: models
that were trained from one start share it.

Memory: one block of one model, the activations of one block, and one tensor of each model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.anatomy import FoundPart, Skeleton, find_parts, slices_of
from blockwright.anatomy.changed import With
from blockwright.anatomy.narrowed import Slice
from blockwright.assemble import check_free, rewrite_folder, unfinished_folder
from blockwright.checkpoint import Checkpoint, resolve_model
from blockwright.errors import ModelError
from blockwright.numerics.alignment import matched_units, unit_correlations
from blockwright.pipeline.heal_model import OUT_OF_DATE
from blockwright.pipeline.proving import open_fitted
from blockwright.pipeline.seeing import SEEN_TOKENS, first_of_each, pattern_of
from blockwright.progress import Progress, SilentProgress
from blockwright.stream import ActivationFile, Inputs, Stem, Stream
from blockwright.texts import bundled_documents, load_tokenizer, read_documents, tokenize
from blockwright.types import AverageResult, Channels, Site, SiteKind

TOKENS, LENGTH = 4_096, 512
SAME = 1e-4
"""Largest relative change of a block's outputs by another order of its units."""


def average(
    models: Sequence[str],
    out: Path,
    *,
    data: Path | None = None,
    align: bool = True,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> AverageResult:
    """Write the mean of some models of one shape to the folder ``out``.

    ``data``: text that units are matched on (shipped text by default); ``align``: whether they are
    matched.  Raises ``ModelError`` for models of other shapes, or compressed ones.
    """
    check_free(out)
    progress = progress or SilentProgress()
    folders = [resolve_model(m, None, trust_remote_code=trust_remote_code).path for m in models]
    streams = [open_fitted(folder, trust_remote_code) for folder in folders]
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    for name, stream, checkpoint in zip(models, streams, checkpoints, strict=True):
        check_alike(name, stream.skeleton, checkpoint, checkpoints[0])
    orders: list[dict[str, Slice]] = [{} for _ in models]
    units, work = Units(), out.with_name(f"{out.name}.merging")
    shutil.rmtree(work, ignore_errors=True)
    if align:
        inputs = text_of(data, folders[0], streams[0].skeleton, trust_remote_code)
        sides = [_Side.of(s, inputs, work / str(place)) for place, s in enumerate(streams)]
        units = match_all(sides, orders, checkpoints[0], progress)
        shutil.rmtree(work)
    mean = _Averaged(checkpoints, orders)
    with progress.stage("write the mean", expected_seconds=1.0), unfinished_folder(out) as folder:
        size = rewrite_folder(mean, folder, {}, left=OUT_OF_DATE)
    return AverageResult(
        out=out,
        models=len(models),
        units=units.matched,
        moved=units.moved,
        size_bytes=size,
        notes=tuple(units.notes),
    )


def check_alike(name: str, skeleton: Skeleton, own: Checkpoint, first: Checkpoint) -> None:
    """Raise ``ModelError`` where a mean with the first model means nothing."""
    if getattr(skeleton.config, "quantization_config", None):
        raise ModelError(
            f"{name} is compressed: codes have no mean; merge the originals, then fit what comes"
            " out"
        )
    for tensor in {*own.names} ^ {*first.names}:
        raise ModelError(f"{name} and {first.folder} differ: one has no tensor {tensor}")
    for tensor in first.names:
        if own.shape(tensor) != first.shape(tensor):
            raise ModelError(
                f"{name}: {tensor} is {list(own.shape(tensor))}, in {first.folder}"
                f" {list(first.shape(tensor))}; only models of one shape have a mean"
            )


def text_of(data: Path | None, folder: Path, skeleton: Skeleton, trusted: bool) -> Inputs:
    """Tokens that units are matched on."""
    documents = bundled_documents("calibration") if data is None else read_documents(data)
    limit = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None)
    length = min(LENGTH, int(limit or LENGTH))
    tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
    return Inputs.of_tokens(tokenize(documents, tokenizer, length, TOKENS, 0, at_least=1).ids)


@dataclass
class Units:
    """Counts of units that were matched."""

    matched: int = 0
    moved: int = 0
    """Of them, those that were in another place."""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Side:
    """One of the models, and where it is in the text."""

    stream: Stream
    inputs: Inputs
    stem: Stem
    hidden: ActivationFile

    @classmethod
    def of(cls, stream: Stream, inputs: Inputs, work: Path) -> _Side:
        path = work / "hidden-0000.bin"
        stem = stream.run_stem(inputs, path)
        return cls(stream, inputs, stem, stream.file(path, stem))

    def advance(self, index: int, watched: Sequence[Site]) -> dict[str, Tensor]:
        """Run a block; what went into the watched sites, [T, I]."""
        seen, path = _Seen(), self.hidden.path.with_name(f"hidden-{index + 1:04d}.bin")
        batches = self.hidden.batches(self.inputs.rows, self.inputs.batch_size)
        block = self.stream.block(index)
        self.stream.run_block(
            index, block, self.stem, batches, output=path, observer=seen, watched=watched
        )
        self.hidden.path.unlink()
        self.hidden = self.stream.file(path, self.stem)
        return {site: torch.cat(parts) for site, parts in seen.inputs.items()}


class _Seen:
    """Observer that keeps inputs."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[Tensor]] = {}

    def start_batch(self) -> None:
        """Everything is kept."""

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        self.inputs.setdefault(site.id, []).append(x_TI.detach().clone())


def match_all(
    sides: Sequence[_Side],
    orders: Sequence[dict[str, Slice]],
    stored: Checkpoint,
    progress: Progress,
) -> Units:
    """Fill ``orders``: parameter -> the order of the first model's units, for every model."""
    units, skeleton = Units(), sides[0].stream.skeleton
    trial = _Trial.of(sides[0])
    with progress.stage("match units", skeleton.num_blocks, "blocks") as stage:
        for index in range(skeleton.num_blocks):
            found = trial.channels(index)
            sites = {site.id: site for site in skeleton.block_sites(index)}
            writers = [sites[channels.writer] for channels in found]
            seen = [side.advance(index, writers) for side in sides]
            for channels, place in ((c, p) for c in found for p in range(1, len(sides))):
                Cr_CC = unit_correlations(
                    seen[0][channels.writer], seen[place][channels.writer], channels.columns
                )
                order = matched_units(Cr_CC)
                members = [sites[name] for name in (*channels.readers, channels.writer)]
                slices = slices_of(members, channels, order)
                named = all(name in stored for name in slices)
                if named and trial.unchanged(sides[place].stream, index, slices):
                    orders[place].update(slices)
                    units.matched += len(order)
                    units.moved += sum(unit != own for own, unit in enumerate(order))
                else:
                    units.notes.append(f"units in front of {channels.writer} keep their order")
            stage.advance()
    return units


@dataclass(frozen=True)
class _Trial:
    """A small batch on which blocks are looked at."""

    skeleton: Skeleton
    stem: Stem
    hidden: Tensor
    parts: dict[tuple[str, ...], tuple[FoundPart, ...]]
    """By the inner names of a block's linears."""

    @classmethod
    def of(cls, side: _Side) -> _Trial:
        stream, inputs = side.stream, side.inputs
        one = Inputs(inputs.name, inputs.values[:1, :SEEN_TOKENS].contiguous(), 1)
        path = side.hidden.path.with_name("seen.bin")
        stem = stream.run_stem(one, path)
        hidden = stream.file(path, stem).read(0, 1).to(stream.device)
        parts = {}
        for pattern, index in first_of_each(stream.skeleton).items():
            sites = stream.skeleton.block_sites(index)
            linears = [site for site in sites if site.kind is SiteKind.LINEAR]
            call, prefix = stem.calls[0][index], f"{stream.skeleton.block_path}.{index}."
            parts[pattern] = find_parts(stream.block(index), prefix, linears, call.run, hidden)
        return cls(stream.skeleton, stem, hidden, parts)

    def channels(self, index: int) -> list[Channels]:
        """FFN channels and heads of a block, under the names of the model."""
        path = f"{self.skeleton.block_path}.{index}"
        found = (part.channels for part in self.parts[pattern_of(self.skeleton, index)])
        return [
            replace(
                channels,
                writer=f"{path}.{channels.writer}",
                readers={f"{path}.{name}": order for name, order in channels.readers.items()},
            )
            for channels in found
            if channels is not None
        ]

    @torch.no_grad()
    def unchanged(self, stream: Stream, index: int, slices: dict[str, Slice]) -> bool:
        """Whether a block gives the same with its units in another order."""
        block, prefix = stream.block(index), f"{self.skeleton.block_path}.{index}."
        moved = {
            name.removeprefix(prefix): order.of(block.get_parameter(name.removeprefix(prefix)))
            for name, order in slices.items()
        }
        call = self.stem.calls[0][index]
        before, after = (call.run(b, self.hidden) for b in (block, With(block, moved)))
        return bool((after - before).norm() <= SAME * (before - self.hidden).norm())


class _Averaged(Checkpoint):
    """The first model's folder with means in place of its tensors."""

    def __init__(
        self, checkpoints: Sequence[Checkpoint], orders: Iterable[dict[str, Slice]]
    ) -> None:
        super().__init__(checkpoints[0].folder, checkpoints[0].entries)
        self._all = list(zip(checkpoints, orders, strict=True))

    def read(self, name: str) -> Tensor:
        parts = []
        for checkpoint, orders in self._all:
            tensor = checkpoint.read(name)
            if not tensor.is_floating_point():
                return tensor
            parts.append(orders[name].of(tensor) if name in orders else tensor)
        return torch.stack([part.float() for part in parts]).mean(0).to(parts[0].dtype)
