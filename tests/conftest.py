"""Tiny models, built once per session."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockwright.errors import KernelError
from blockwright.numerics.int4_library import SOURCE, native_int4
from blockwright.numerics.int4_native import build_native_int4
from blockwright.numerics.native import SWITCH, find_compiler, library_path, missing
from tests.models import tiny_model

os.environ[SWITCH] = "0"  # a kernel that was built on this machine changes no test

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """``model_folder(kind, **options)``: the folder of a tiny model; shared, so read only."""
    built: dict[str, Path] = {}

    def build(kind: str, **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in built:
            built[key] = tiny_model(kind, tmp_path_factory.mktemp(kind), **options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the native kernel, built once for all workers; skips where it cannot."""
    refusal = missing(SOURCE)
    try:
        find_compiler()
    except KernelError as error:
        refusal = refusal or str(error)
    if refusal:
        pytest.skip(refusal)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    cache = shared / "native-kernel"
    cache.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, (cache / "lock").open("w") as lock:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library_path(SOURCE).exists():
            build_native_int4()
    return cache


@pytest.fixture
def native_kernel(native_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native kernel in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(native_cache))
    monkeypatch.delenv(SWITCH)
    assert native_int4()
