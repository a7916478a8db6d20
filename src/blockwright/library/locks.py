"""Locks between processes (flock): the kernel drops them when a process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from blockwright.errors import LibraryError
from blockwright.library.documents import cannot_write


@contextmanager
def only_builder(path: Path, library: Path) -> Iterator[None]:
    """Hold a lock file; ``LibraryError`` at once, naming its holder, when it is held."""
    descriptor = _open_locked(path, library)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, library: Path) -> int:
    """A descriptor that holds the lock of the file that is at ``path`` now.

    A holder removes the file when it is done; whoever opened it just before then tries again.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            _flock(descriptor, fcntl.LOCK_EX, path)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f"process {holder}" if holder else "another process"
            raise LibraryError(
                f"library {library}: {by} is building the same entry {path.name};"
                " wait for it, or give another --library"
            ) from None
        except LibraryError:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            _sign(descriptor, path)
            return descriptor
        os.close(descriptor)


def _sign(descriptor: int, path: Path) -> None:
    """Say who holds a lock file; it is let go when that cannot be written."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise cannot_write(path, error) from None


class Shared:
    """This process's part in a folder: many may share it, cleaning needs it alone.

    The marker file is opened for reading only, so that a library that may not be written can be
    planned from.
    """

    _open: ClassVar[weakref.WeakValueDictionary[Path, Shared]] = weakref.WeakValueDictionary()

    def __init__(self, marker: Path) -> None:
        self._marker = marker
        self._descriptor = os.open(marker, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            _flock(self._descriptor, fcntl.LOCK_SH, marker)
        except BlockingIOError:
            raise LibraryError(
                f"library {marker.parent} is being cleaned by another process; wait for it"
            ) from None

    @classmethod
    def of(cls, marker: Path) -> Shared:
        """One per process and folder."""
        place = marker.resolve()
        found = cls._open.get(place)
        if found is None:
            found = cls._open[place] = cls(place)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out; ``LibraryError`` when one is in."""
        try:
            _flock(self._descriptor, fcntl.LOCK_EX, self._marker)
        except BlockingIOError:
            with suppress(BlockingIOError):
                _flock(self._descriptor, fcntl.LOCK_SH, self._marker)
            raise LibraryError(
                f"library {self._marker.parent} is in use by another process; wait for it to end"
            ) from None
        try:
            yield
        finally:
            _flock(self._descriptor, fcntl.LOCK_SH, self._marker)


def _flock(descriptor: int, kind: int, path: Path) -> None:
    """Never waits: ``BlockingIOError`` when it would have to."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise LibraryError(
            f"{path} cannot be locked ({error.strerror}); give a --library on a local disk"
        ) from None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
