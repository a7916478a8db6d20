"""Native kernels: C++ sources of this package, compiled on request, kept in the user's cache.

Nothing here is needed: without a compiled library PyTorch's kernels multiply.  ``build_library``
compiles, nothing else does.  A library is a folder, named by everything it depends on, with the
digest of its file beside it; a file that does not have this digest, or that somebody else may
write, is never loaded.

It uses the OpenMP runtime that PyTorch has loaded, so that one team of threads does all the work:
two runtimes would spin against each other on the same cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from blockwright.errors import KernelError

SWITCH = "BLOCKWRIGHT_NATIVE"
"""Environment variable; 0: native kernels are not used (for comparisons)."""
COMPILE_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-mprefer-vector-width=512")
LIBRARY_NAME, DIGEST_NAME = "kernel.so", "digest"
BUILD_SECONDS = 300
OPENMP = re.compile(r"\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*$")


@dataclass(frozen=True)
class Source:
    """A C++ file beside this one, and the instructions that it is compiled for."""

    file: str
    instructions: tuple[str, ...]
    """As Linux names them; ``-m`` and the name without underscores for the compiler."""

    @property
    def path(self) -> Path:
        return Path(__file__).parent / self.file

    @property
    def flags(self) -> tuple[str, ...]:
        return (*COMPILE_FLAGS, *(f"-m{name.replace('_', '')}" for name in self.instructions))


def library_path(source: Source) -> Path:
    """Where the library of this source, PyTorch and machine is, or would be."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_folder / "blockwright" / "native" / source_digest(source) / LIBRARY_NAME


@cache
def source_digest(source: Source) -> str:
    """Of everything that a library depends on."""
    runtime = openmp_runtime()
    parts = (source.path.read_text(encoding="utf-8"), *source.flags, torch.__version__, runtime)
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def missing(source: Source) -> str | None:
    """Why this machine cannot run it, in a few words; None: it can."""
    absent = [name for name in source.instructions if name not in processor_flags()]
    if absent:
        return f"this processor has no {', '.join(absent)}"
    if openmp_runtime() is None:
        return "this PyTorch runs no OpenMP"
    return None


def is_switched_off() -> bool:
    return os.environ.get(SWITCH) == "0"


def find_library(source: Source) -> ctypes.CDLL | None:
    """The compiled library; None where there is none or it is switched off.

    One that cannot be trusted is reported by a warning, once, and not used.
    """
    return None if is_switched_off() else _load(source, library_path(source))


@cache
def _load(source: Source, path: Path) -> ctypes.CDLL | None:
    if not path.exists() or missing(source):
        return None
    wrong = distrust(path)
    if wrong is None:
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            wrong = f"cannot be loaded ({error})"
    warnings.warn(
        f"native kernel {path} {wrong} and is not used; `blockwright kernels --build` makes it"
        " again",
        stacklevel=3,
    )
    return None


def distrust(path: Path) -> str | None:
    """What is wrong with a library file; None: it is as it was built, and ours alone."""
    beside = path.with_name(DIGEST_NAME)
    for each in (path.parent, path, beside):
        if not each.exists():
            return f"has no {each.name}"
        found = each.stat()
        if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
            return "may be written by others"
    if file_digest(path) != beside.read_text(encoding="ascii", errors="replace").strip():
        return "is damaged"
    return None


def file_digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def build_library(source: Source, prove: Callable[[ctypes.CDLL], bool]) -> Path:
    """Compile, prove that it multiplies, and put it in its place; returns where it is.

    Whoever is first wins where two build at once.  Raises ``KernelError`` in one line.
    """
    refusal = missing(source)
    if refusal:
        raise KernelError(f"native kernel: {refusal}; PyTorch's kernels stay in use")
    path = library_path(source)
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent.parent))
    try:
        _compile(source, made)
        if not prove(ctypes.CDLL(str(made / LIBRARY_NAME))):
            raise KernelError("native kernel: compiled, but its products are wrong; it is not used")
        (made / DIGEST_NAME).write_text(file_digest(made / LIBRARY_NAME) + "\n", encoding="ascii")
        _publish(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _load.cache_clear()
    return path


def _compile(source: Source, folder: Path) -> None:
    """``kernel.so`` in ``folder``; linked without -fopenmp, to the runtime of this process."""
    compiler = find_compiler()
    library, part = folder / LIBRARY_NAME, folder / "kernel.o"
    _run([compiler, *source.flags, "-c", str(source.path), "-o", str(part)])
    runtime = str(openmp_runtime())
    _run([compiler, "-shared", "-Wl,-z,defs", str(part), runtime, "-o", str(library)])
    part.unlink()
    library.chmod(0o755)
    folder.chmod(0o755)


def find_compiler() -> str:
    """The C++ compiler: CXX, g++ or c++.  Raises ``KernelError``."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("g++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    raise KernelError(
        f"native kernel: no C++ compiler ({named or 'g++, c++'} not found); install g++ or set CXX;"
        " PyTorch's kernels stay in use"
    )


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"native kernel: {command[0]} did not end within {BUILD_SECONDS} seconds"
        ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        wrong = [line for line in lines if "error" in line] or lines or ["it said nothing"]
        raise KernelError(
            f"native kernel: {command[0]} failed ({wrong[-1]}); PyTorch's kernels stay in use"
        )


def _publish(made: Path, path: Path) -> None:
    """Rename a finished folder into place, over a damaged one, never over a good one."""
    for _ in range(3):
        try:
            made.rename(path.parent)
        except OSError:
            if path.exists() and distrust(path) is None:
                return
            aside = Path(tempfile.mkdtemp(prefix=".removing-", dir=path.parent.parent))
            path.parent.rename(aside / "old")
            shutil.rmtree(aside)
        else:
            return
    raise KernelError(f"native kernel: {path.parent} cannot be replaced; delete it and repeat")


@cache
def processor_flags() -> frozenset[str]:
    """Instruction sets of this machine's processor; none where Linux does not tell."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())


@cache
def openmp_runtime() -> Path | None:
    """The OpenMP runtime in this process, PyTorch's own first."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    matches = [OPENMP.search(line) for line in lines]
    loaded = sorted({Path(match[0]) for match in matches if match})
    own = [path for path in loaded if path.is_relative_to(Path(torch.__file__).parent)]
    return next(iter(own or loaded), None)
