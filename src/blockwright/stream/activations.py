"""Hidden states on disk: read and written with plain I/O, so that no mapped page counts as resident
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor

from blockwright.errors import OutputError


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(cast(bytes, tensor.view(-1).view(torch.uint8).numpy()))


class ActivationWriter:
    """Appends batches [B, T, H] to ``path.partial``; ``path`` exists only once all were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from None

    def append(self, hidden: Tensor) -> None:
        data = as_bytes(hidden.detach().contiguous().cpu())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _write_error(self.path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self.path)
            else:
                self._partial.unlink(missing_ok=True)
        except OSError as failure:
            if kind is None:
                raise _write_error(self.path, failure) from None


class ActivationFile:
    """A finished file of N rows of shape [T, H] (``row_shape``)."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path, self.row_shape, self.dtype = path, row_shape, dtype
        self.row_bytes = torch.Size(row_shape).numel() * dtype.itemsize

    def is_complete(self, rows: int) -> bool:
        """Whether the file is there with exactly this many rows."""
        return self.path.is_file() and self.path.stat().st_size == rows * self.row_bytes

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in fresh memory."""
        rows = torch.empty((stop - start, *self.row_shape), dtype=self.dtype)
        target = as_bytes(rows)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            offset = start * self.row_bytes
            while target:
                count = os.preadv(descriptor, [target], offset)
                if count == 0:
                    raise OutputError(f"{self.path} is shorter than expected; delete it and rerun")
                target, offset = target[count:], offset + count
        finally:
            os.close(descriptor)
        return rows

    def batches(self, rows: int, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, rows, batch_size):
            yield self.read(start, min(start + batch_size, rows))


def _write_error(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror}; free space or permissions there, or give another"
        " --library folder; the same command resumes"
    )
