"""Writes safetensors one tensor at a time, with bytes that never depend on the run.

The layout is known up front.  The data of a file is ordered by element size, largest first (the
format asks for aligned tensors), then as the layout gives it; the header follows the data's order,
its metadata keys are sorted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from blockwright.checkpoint.atomic import (
    discard,
    output_error,
    partial_path,
    sync_folder,
    write_bytes_atomic,
)
from blockwright.checkpoint.header import DTYPE_NAMES, LENGTH
from blockwright.checkpoint.reader import INDEX_FILE, SINGLE_FILE, byte_view
from blockwright.errors import OutputError

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Shard:
    """One file to write."""

    path: Path
    header: bytes
    offsets: Mapping[str, int]
    """Tensor -> bytes from the start of the file."""
    size: int

    @property
    def partial(self) -> Path:
        return partial_path(self.path)


class ShardWriter:
    """Streams tensors in the layout's order into one or more files, renamed when all are whole."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        max_shard_bytes: int = 5_000_000_000,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """``metadata``: of every file's header, beside transformers' own ``format: pt``."""
        self._folder, self._layout = folder, dict(layout)
        self._shards = _plan_shards(
            folder, self._layout, max_shard_bytes, {"format": "pt", **(metadata or {})}
        )
        self._pending = self._order()
        self._next = next(self._pending, None)
        self._open_shard: Shard | None = None
        self._descriptor = -1
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor; ``ValueError`` if another is due, ``OutputError`` by the disk."""
        if self._next is None or self._next[1] != name:
            due = self._next[1] if self._next else "nothing more"
            raise ValueError(f"tensor {name} written out of order: {due} is due")
        dtype, shape = self._layout[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)},"
                f" announced as {dtype} {list(shape)}"
            )
        shard = self._next[0]
        if shard is not self._open_shard:
            self._finish_file()
            self._start_file(shard)
        self._put(byte_view(tensor.detach().cpu().contiguous()), shard.offsets[name])
        self._next = next(self._pending, None)

    def close(self) -> int:
        """Rename the finished files into place, write the index; returns the files' bytes.

        Harmless when repeated.
        """
        if self._closed:
            return sum(shard.size for shard in self._shards)
        if self._next is not None:
            self.abort()
            raise ValueError(f"tensor {self._next[1]} was announced and not written")
        if not self._layout:
            self._start_file(self._shards[0])
        self._finish_file()
        try:
            for shard in self._shards:
                shard.partial.replace(shard.path)
            sync_folder(self._folder)
        except OSError as error:
            self.abort()
            raise output_error(self._folder, error, 0) from None
        if len(self._shards) > 1:
            self._write_index()
        self._closed = True
        return sum(shard.size for shard in self._shards)

    def abort(self) -> None:
        """Remove what was not finished."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        for shard in self._shards:
            discard(shard.partial)

    def _order(self) -> Iterator[tuple[Shard, str]]:
        """Every tensor with its file, in the layout's order."""
        place = {name: shard for shard in self._shards for name in shard.offsets}
        return iter([(place[name], name) for name in self._layout])

    def _start_file(self, shard: Shard) -> None:
        self._open_shard = shard
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(shard.partial, flags, 0o644)
        except OSError as error:
            raise self._failed(error) from None
        self._put(memoryview(shard.header), 0)

    def _finish_file(self) -> None:
        if self._descriptor < 0:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from None
        os.close(self._descriptor)
        self._descriptor = -1

    def _put(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                count = os.pwrite(self._descriptor, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        shard = self._open_shard or self._shards[0]
        self.abort()
        return output_error(shard.path, error, shard.size)

    def _write_index(self) -> None:
        nbytes = sum(_nbytes(*self._layout[name]) for name in self._layout)
        places = {name: shard.path.name for shard in self._shards for name in shard.offsets}
        index = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(places.items()))}
        write_bytes_atomic(self._folder / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _plan_shards(
    folder: Path, layout: Layout, max_bytes: int, metadata: Mapping[str, str]
) -> list[Shard]:
    """Fill files in the layout's order; a tensor larger than the limit gets a file of its own."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in layout.items():
        nbytes = _nbytes(dtype, shape)
        if parts[-1] and filled + nbytes > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += nbytes
    if len(parts) == 1:
        return [_shard(folder / SINGLE_FILE, parts[0], layout, metadata)]
    names = (f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1))
    return [
        _shard(folder / file, part, layout, metadata)
        for file, part in zip(names, parts, strict=True)
    ]


def _shard(path: Path, names: list[str], layout: Layout, metadata: Mapping[str, str]) -> Shard:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    ends, end = {}, 0
    for name in sorted(names, key=lambda n: -layout[n][0].itemsize):
        dtype, shape = layout[name]
        begin, end = end, end + _nbytes(dtype, shape)
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        ends[name] = begin
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = LENGTH.pack(len(text)) + text
    offsets = {name: len(header) + begin for name, begin in ends.items()}
    return Shard(path, header, offsets, len(header) + end)
