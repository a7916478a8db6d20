"""A folder of built variants.

    library.json                         version of this layout
    entries/<k>/<key>/entry.json         record, with size and digest of the tensors; written last
    entries/<k>/<key>/tensors.safetensors
    locks/<key>                          held (flock) by the process that builds the entry
    problems/<fingerprint>-<stats>.json  what plans are solved from, without the model
    results/<key>.json                   figures measured once
    work/<name>/                         hidden states of unfinished runs

An entry exists when its ``entry.json`` does and the tensors are as it says; anything else is
absent, is removed when met, and is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwright.errors import LibraryError, OutputError
from blockwright.types import Option, Problem, VariantRecord

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY_VERSION = 1
KEY_BYTES = 20


def variant_key(inputs: Mapping[str, Any]) -> str:
    """Content address: digest of everything that decides a variant."""
    return _digest(_canonical(inputs))


class Library:
    """Variants on disk.  Looking things up imports no torch."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the folder; ``LibraryError`` when a newer Blockwright made it."""
        self.folder = folder
        marker = folder / "library.json"
        if marker.is_file():
            version = _read_json(marker).get("version")
            if version != LIBRARY_VERSION:
                raise LibraryError(
                    f"library {folder} has layout version {version}, this Blockwright reads"
                    f" {LIBRARY_VERSION}; give another --library"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise LibraryError(f"{folder} is not empty and no library; give another --library")
        else:
            _write(marker, _pretty({"version": LIBRARY_VERSION}))

    # Entries

    def lookup(self, key: str) -> VariantRecord | None:
        """The record of a whole entry; None when it is absent or damaged (then it is removed)."""
        path = self._entry(key) / "entry.json"
        if not path.is_file():
            return None
        try:
            stored = _read_json(path)
            record = VariantRecord.from_json(stored["record"])
            size = stored["tensors"]["bytes"]
        except (LibraryError, KeyError, TypeError):
            self._remove(key)
            return None
        path = path.with_name("tensors.safetensors")
        if record.available and (not path.is_file() or path.stat().st_size != size):
            self._remove(key)
            return None
        return record

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Packed tensors of an entry, their digest checked; ``LibraryError`` when damaged."""
        from safetensors.torch import load

        problem = self._damage(key)
        if problem:
            self._remove(key)
            raise LibraryError(
                f"library entry {key} is damaged ({problem}) and was removed; run again"
            )
        loaded: dict[str, Tensor] = load((self._entry(key) / "tensors.safetensors").read_bytes())
        return loaded

    def store(self, record: VariantRecord, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry: tensors first, then its record; each under a temporary name."""
        from safetensors.torch import save

        folder = self._entry(record.key)
        data = save(dict(tensors)) if record.available else b""
        if record.available:
            _write(folder / "tensors.safetensors", data)
        described = {"bytes": len(data), "digest": _digest(data)}
        _write(folder / "entry.json", _pretty({"record": record.to_json(), "tensors": described}))

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold an entry's lock; ``LibraryError`` at once when another process has it."""
        path = self.folder / "locks" / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace") or "unknown"
                raise LibraryError(
                    f"library {self.folder}: process {holder} is building the same entry {key};"
                    " wait for it, or give another --library"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def ls(self) -> list[VariantRecord]:
        """Records of all whole entries, by key."""
        found = [self.lookup(path.name) for path in self._entry_folders()]
        return [record for record in found if record is not None]

    def verify(self) -> dict[str, str]:
        """Key -> what is wrong, for every damaged entry; all bytes are read."""
        problems = {path.name: self._damage(path.name) for path in self._entry_folders()}
        return {key: problem for key, problem in problems.items() if problem}

    def gc(self) -> dict[str, int]:
        """Remove damaged and unfinished entries, entries of no problem, and working files."""
        kept = {option.key for problem in self.problems() for option in problem.options}
        damaged = set(self.verify())
        removed = [
            path
            for path in self._entry_folders()
            if path.name in damaged or (kept and not self._belongs(path.name, kept))
        ]
        removed += [self.folder / "work", self.folder / "locks"]
        freed = sum(_folder_bytes(path) for path in removed)
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
        return {"entries": len(removed) - 2, "bytes": freed}

    def _belongs(self, key: str, kept: set[str]) -> bool:
        """Whether an entry is an option of a problem, or refined, or a recorded failure."""
        record = self.lookup(key)
        if record is None:
            return False
        refined = "refined-in" in str(record.inputs.get("statistics", ""))
        return key in kept or refined or not record.available

    # Problems and results

    def write_problem(self, problem: Problem) -> None:
        """Keep what plans are solved from."""
        name = f"{problem.fingerprint}-{problem.statistics}.json"
        _write(self.folder / "problems" / name, _pretty(asdict(problem)))

    def problems(self) -> list[Problem]:
        """All problems, newest first."""
        paths = list((self.folder / "problems").glob("*.json"))
        paths.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
        return [_problem(_read_json(path), path) for path in paths]

    def result(self, key: str) -> dict[str, Any] | None:
        """Figures measured before; None when there are none."""
        path = self.folder / "results" / f"{key}.json"
        try:
            return _read_json(path) if path.is_file() else None
        except LibraryError:
            path.unlink(missing_ok=True)
            return None

    def store_result(self, key: str, figures: Mapping[str, Any]) -> None:
        """Keep figures."""
        _write(self.folder / "results" / f"{key}.json", _pretty(dict(figures)))

    def work_folder(self, name: str) -> Path:
        """A folder for the working files of one stage of one run."""
        path = self.folder / "work" / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from None
        return path

    # Paths

    def _entry(self, key: str) -> Path:
        return self.folder / "entries" / key[:2] / key

    def _entry_folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("entries/*/*") if path.is_dir())

    def _remove(self, key: str) -> None:
        shutil.rmtree(self._entry(key), ignore_errors=True)

    def _damage(self, key: str) -> str:
        """What is wrong with an entry; empty when nothing is."""
        try:
            stored = _read_json(self._entry(key) / "entry.json")
            record = VariantRecord.from_json(stored["record"])
            if not record.available:
                return ""
            data = (self._entry(key) / "tensors.safetensors").read_bytes()
            return "" if _digest(data) == stored["tensors"]["digest"] else "altered tensors"
        except LibraryError as error:
            return str(error)
        except OSError as error:
            return error.strerror or "unreadable"
        except (KeyError, TypeError) as error:
            return f"not a record: {error}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ``LibraryError`` when it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LibraryError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise LibraryError(f"{path} holds a {type(value).__name__}, no object")
    return value


def _problem(data: dict[str, Any], path: Path) -> Problem:
    try:
        options = tuple(
            Option(**{**option, "contains": tuple(option["contains"])})
            for option in data["options"]
        )
        return Problem(**{**data, "options": options})
    except (KeyError, TypeError) as error:
        raise LibraryError(f"{path} is of another version ({error}); run `fit` again") from None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: to a temporary name, then renamed.

    Not synced: a killed process loses nothing, and what a power cut damages is noticed by its size
    or digest and built again.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror}; free space or permissions there, or give another"
        " --library; the same command resumes"
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
