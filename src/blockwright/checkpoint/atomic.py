"""Small files written whole or not at all: temporary name, flush to disk, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from blockwright.errors import OutputError

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Temporary name of a file that is being written, in the same folder."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write JSON with keys in the order given; raises ``OutputError``."""
    write_bytes_atomic(path, (json.dumps(obj, indent=1) + "\n").encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; what was there survives any failure (``OutputError``)."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        discard(partial)
        raise output_error(path, error, len(data)) from None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(partial: Path) -> None:
    """Remove an unfinished file where that is possible; it never counts as finished anyway."""
    if partial.exists() and os.access(partial.parent, os.W_OK):
        partial.unlink()


def output_error(path: Path, error: OSError, needed_bytes: int) -> OutputError:
    """One line for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"cannot write {path}: no space left ({needed_bytes} bytes needed,"
            f" {_free_bytes(path.parent)} free); free some space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"cannot write {path}: no permission ({error.strerror});"
            " choose a folder you can write to"
        )
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _free_bytes(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return str(shutil.disk_usage(folder).free)
