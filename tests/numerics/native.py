"""The native int4 kernel, built once for all tests of a run that want it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockwright.errors import KernelError
from blockwright.numerics.int4_native import SOURCE, build_native_int4, native_int4
from blockwright.numerics.native import SWITCH, find_compiler, library_path, missing


def shared_cache() -> Path:
    """One for all workers and runs: a build takes seconds, its name says what it is of."""
    return Path(tempfile.gettempdir()) / f"blockwright-tests-{os.getuid()}"


@contextmanager
def native_kernel_built() -> Iterator[None]:
    """With the native kernel in use; skips where it cannot be built."""
    refusal = missing(SOURCE)
    if refusal:
        pytest.skip(refusal)
    try:
        find_compiler()
    except KernelError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache()))
        patch.delenv(SWITCH, raising=False)
        shared_cache().mkdir(mode=0o700, exist_ok=True)
        with (shared_cache() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library_path(SOURCE).exists():
                build_native_int4()
        assert native_int4()
        yield
