"""Reads tensors by name from safetensors files, never more than is asked for.

Plain reads into fresh memory instead of mapped files: mapped pages count as resident memory and
would break the promise that a run needs one block at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockwright.checkpoint.header import TensorEntry, read_header
from blockwright.errors import CheckpointError, ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CHUNK_BYTES = 8 * 2**20
CHUNK_ELEMENTS = 4 * 2**20


class Checkpoint:
    """All tensors of a model folder.  Only headers are in memory."""

    def __init__(self, folder: Path, entries: dict[str, TensorEntry]) -> None:
        self.folder = folder
        self._entries = entries

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check the headers; raises ``ModelError`` or ``CheckpointError``."""
        files, index = _tensor_files(folder)
        entries: dict[str, TensorEntry] = {}
        for path in files:
            for name, entry in read_header(path).items():
                if name in entries:
                    raise CheckpointError(
                        f"{folder}: tensor {name} is in {entries[name].path.name} and in"
                        f" {path.name}; remove the file that does not belong to this model"
                    )
                entries[name] = entry
        for name, file in index.items():
            if name not in entries or entries[name].path.name != file:
                raise CheckpointError(
                    f"{folder}: {INDEX_FILE} places tensor {name} in {file}, which does not hold"
                    " it; download or copy the model again"
                )
        return cls(folder, entries)

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Where every tensor is."""
        return dict(self._entries)

    def overlaid(self, files: Iterable[Path]) -> Checkpoint:
        """The same folder, with some of its tensors read from other files."""
        entries = self.entries
        for path in files:
            entries |= read_header(path)
        return Checkpoint(self.folder, entries)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        return self._entry(name).nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(entry.path for entry in self._entries.values()))

    @property
    def total_file_bytes(self) -> int:
        """Size of the safetensors files, headers included."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, name: str) -> Tensor:
        """The tensor, in fresh memory."""
        entry = self._entry(name)
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        _read_into(entry, byte_view(tensor), 0)
        return tensor

    def digest(self, name: str) -> str:
        """blake2b of the stored bytes, hex."""
        entry, hasher = self._entry(name), blake2b(digest_size=32)
        for chunk in _chunks(entry, CHUNK_BYTES):
            hasher.update(chunk)
        return hasher.hexdigest()

    def finite_digest(self, name: str) -> str:
        """The digest, in one reading with the check of ``check_finite``."""
        entry, hasher = self._entry(name), blake2b(digest_size=32)
        for chunk in _chunks(entry, CHUNK_ELEMENTS * entry.dtype.itemsize):
            hasher.update(chunk)
            if entry.dtype.is_floating_point or entry.dtype.is_complex:
                check_finite(name, torch.frombuffer(chunk, dtype=entry.dtype))
        return hasher.hexdigest()

    def check_finite(self, name: str) -> None:
        """Raise ``CheckpointError`` if a stored tensor holds NaN or infinity; reads in chunks."""
        entry = self._entry(name)
        if entry.dtype.is_floating_point or entry.dtype.is_complex:
            for chunk in _chunks(entry, CHUNK_ELEMENTS * entry.dtype.itemsize):
                check_finite(name, torch.frombuffer(chunk, dtype=entry.dtype))

    def _entry(self, name: str) -> TensorEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        return entry


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ``CheckpointError`` when a tensor holds NaN or infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    for chunk in torch.split(tensor.reshape(-1), CHUNK_ELEMENTS):
        wide = chunk.float() if chunk.dtype.itemsize < 4 else chunk
        if not torch.isfinite(wide.sum()) and not torch.isfinite(wide).all():
            word = "NaN" if torch.isnan(wide).any() else "infinity"
            raise CheckpointError(
                f"tensor {name} {list(tensor.shape)} contains {word}: the model is damaged;"
                " download it again or use another revision"
            )


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    if not tensor.numel():
        return memoryview(b"")
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _tensor_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Files to read, and tensor -> file name as far as an index says."""
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist")
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE], {}
    if (folder / INDEX_FILE).is_file():
        return _indexed_files(folder)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files, {}
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds {pickles[0]} and no safetensors; pickle files can run code and are"
            " never loaded; if you trust it, convert it with transformers:"
            f" AutoModel.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder} holds no safetensors files ({SINGLE_FILE} or {INDEX_FILE})")


def _indexed_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    path = folder / INDEX_FILE
    index = _weight_map(path)
    files = [folder / name for name in sorted(set(index.values()))]
    for file in files:
        if not _is_file(file):
            raise CheckpointError(
                f"{path} names {file.name}, which is missing; download or copy the model again"
            )
    return files, index


def _is_file(path: Path) -> bool:
    """``is_file`` for names that no file can have, too."""
    try:
        return path.is_file()
    except OSError:
        return False


def _weight_map(path: Path) -> dict[str, str]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {error}") from None
    index = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path} has no 'weight_map' of tensors to files")
    for name, file in index.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path} places tensor {name} in {file!r}, which is no file name")
    return index


def _chunks(entry: TensorEntry, size: int) -> Iterator[bytearray]:
    for start in range(0, entry.nbytes, size):
        chunk = bytearray(min(size, entry.nbytes - start))
        _read_into(entry, memoryview(chunk), start)
        yield chunk


def _read_into(entry: TensorEntry, target: memoryview, start: int) -> None:
    """Fill ``target`` with the entry's bytes from ``start`` on."""
    offset = entry.offset + start
    try:
        descriptor = os.open(entry.path, os.O_RDONLY)
        try:
            while target:
                count = os.preadv(descriptor, [target], offset)
                if count == 0:
                    raise CheckpointError(f"{entry.path} is truncated: it ended while being read")
                target, offset = target[count:], offset + count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.path}: {error.strerror}") from None
