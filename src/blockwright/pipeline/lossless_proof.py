"""The proof of a lossless fit: every tensor decoded from the folder and hashed, then a reload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from blockwright.assemble import Layout
from blockwright.checkpoint import Checkpoint
from blockwright.checkpoint.reader import byte_view
from blockwright.errors import ModelError
from blockwright.formats import FormatLinear, format_from_spec
from blockwright.pipeline.opening import Opened
from blockwright.pipeline.proving import (
    RELOAD_ROWS,
    RELOAD_TOKENS,
    SPEED_PREFILL_TOKENS,
    reload_alike,
    time_original,
)
from blockwright.pipeline.texts import sequence_length
from blockwright.stream import Inputs, part_of
from blockwright.types import LosslessFormat, Site, Speed


@dataclass(frozen=True)
class LosslessProof:
    """What was found on the finished folder."""

    verified_tensors: int
    size_bytes: int
    """Of the folder's safetensors files."""
    original_speed: Speed | None
    fitted_speed: Speed | None
    notes: tuple[str, ...]


def prove_lossless(opened: Opened, layout: Layout, folder: Path) -> LosslessProof:
    """Hash every tensor, reload the folder in a fresh process, time it if asked.

    Raises ``ModelError`` when a bit differs, the folder does not load, or its outputs are others.
    """
    verified = hash_tensors(opened, layout, folder)
    ids = random_ids(opened, RELOAD_ROWS, RELOAD_TOKENS)
    speed_ids = random_ids(opened, 1, SPEED_PREFILL_TOKENS)[0]
    work = opened.library.work_folder(f"lossless-{opened.original.fingerprint}")
    inputs = Inputs("input_ids", ids, RELOAD_ROWS)
    fitted = reload_alike(opened, folder, opened.stream(), inputs, work, speed_ids)
    asked = opened.request.speed
    original, notes = time_original(opened, speed_ids) if asked else (None, ())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return LosslessProof(verified, size, original, fitted, notes)


def hash_tensors(opened: Opened, layout: Layout, folder: Path) -> int:
    """Compare the hash of every tensor, decoded from the folder, with that of the original's.

    Both are read from disk, one parameter at a time.  Returns how many there are; raises
    ``ModelError`` naming the first that differs.
    """
    written, names = Checkpoint.open(folder), tuple(layout.parameters())
    with opened.progress.stage("hash every tensor", len(names), "tensors") as stage:
        for name in names:
            original = opened.original.parameters.load([name])[name]
            sites = layout.packed_sites.get(name, [])
            decoded = _decoded(layout, written, original, sites) if sites else written.read(name)
            _check_alike(opened, name, _digest(decoded), _digest(original))
            stage.advance()
        for name in layout.unused:
            digest = opened.original.checkpoint.digest(name)
            _check_alike(opened, name, written.digest(name), digest)
    return len(names) + len(layout.unused)


def random_ids(opened: Opened, rows: int, tokens: int) -> Tensor:
    """Token ids [rows, T], T as many as asked or as the model has positions: no text is needed to
    see that two models are one.
    """
    length = min(tokens, sequence_length(opened.request, opened.skeleton))
    vocabulary = int(opened.skeleton.config.get_text_config().vocab_size)
    draw = torch.Generator().manual_seed(opened.request.seed)
    return torch.randint(vocabulary, (rows, length), generator=draw)


def _decoded(
    layout: Layout, written: Checkpoint, original: Tensor, sites: Sequence[Site]
) -> Tensor:
    """A parameter put together from its packed sites, in memory that held nothing of it."""
    decoded = torch.zeros_like(original)
    for site in sites:
        format = format_from_spec(layout.specs[site.id])
        if not isinstance(format, LosslessFormat):
            raise TypeError(f"{site.id}: {format.name} is not lossless")
        module = format.empty(site.shape, bias=False, dtype=original.dtype)
        if not isinstance(module, FormatLinear):
            raise TypeError(f"{format.name} made a {type(module).__name__}")
        module.load_stored(
            {name: written.read(site.stored_prefix + name) for name in module.stored_names}
        )
        every_row = torch.arange(site.shape[0])
        part_of(site, decoded).copy_(module.rows(every_row))
    return decoded


def _digest(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bytes."""
    hasher = blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=32)
    hasher.update(byte_view(tensor.contiguous()))
    return hasher.hexdigest()


def _check_alike(opened: Opened, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelError(
            f"{opened.request.out}: {name} is not bit for bit that of {opened.request.model}; the"
            " folder was not kept: report this"
        )
