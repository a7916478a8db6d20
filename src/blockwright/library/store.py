"""A folder of built variants.

    library.json                         version of this layout; shared (flock) by all who use it
    entries/<k>/<key>/tensors.safetensors
    entries/<k>/<key>/row_errors.f32     squared error of every output, [O] little-endian fp32
    entries/<k>/<key>/entry.json         record, with size and digest of the files; written last
    locks/<key>                          held (flock) by the process that builds the entry
    problems/<fingerprint>-<stats>.json  what plans are solved from, without the model
    results/<key>.json                   figures measured once
    results/<key>.safetensors            tensors measured once; the JSON has their digest
    work/<name>/                         hidden states of unfinished runs

An entry exists when its ``entry.json`` does and the tensors are as it says; anything else is
absent, is removed when met, reported in ``repairs``, and is built again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwright.errors import LibraryError
from blockwright.library.documents import (
    PARTIAL,
    DamagedError,
    cannot_write,
    canonical,
    digest,
    file_digest,
    is_left_behind,
    read_document,
    write_document,
    write_whole,
)
from blockwright.library.locks import Shared, only_builder
from blockwright.library.problems import problem_from_json, problem_to_json
from blockwright.types import Problem, Profile, VariantRecord

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def variant_key(inputs: Mapping[str, Any]) -> str:
    """Content address: digest of everything that decides a variant."""
    return digest(canonical(inputs))


def kind_of(record: VariantRecord) -> str:
    """``built`` on the original's inputs, ``refined`` or ``healed`` behind a plan, or
    ``unavailable``.
    """
    if not record.available:
        return "unavailable"
    seen = str(record.inputs.get("statistics", ""))
    kinds = {"refined-in": "refined", "healed-in": "healed"}
    return next((kind for mark, kind in kinds.items() if mark in seen), "built")


class Library:
    """Variants on disk.  Looking things up imports no torch."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the folder; ``LibraryError`` when a newer Blockwright made it."""
        self.folder = folder
        self.repairs: list[str] = []
        """What was found damaged and removed, one line each."""
        self._held: set[str] = set()
        marker = folder / "library.json"
        if not marker.is_file():
            if folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in folder.iterdir()):
                raise LibraryError(f"{folder} is not empty and no library; give another --library")
            write_whole(marker, canonical({"version": LIBRARY_VERSION}))
        try:
            version = json.loads(marker.read_bytes())["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LibraryError(
                f"{marker} cannot be read: {error}; give another --library"
            ) from None
        if version != LIBRARY_VERSION:
            raise LibraryError(
                f"library {folder} has layout version {version}, this Blockwright reads"
                f" {LIBRARY_VERSION}; give another --library"
            )
        self._shared = Shared.of(marker)

    # Entries

    def lookup(self, key: str) -> VariantRecord | None:
        """The record of a whole entry; None when it is absent or damaged (then it is removed)."""
        try:
            found = self._read_entry(key)
        except DamagedError as error:
            self._remove(key, str(error))
            return None
        return found[0] if found else None

    def intact(self, key: str) -> bool:
        """Whether an entry is there with every byte as written; if damaged it is removed."""
        try:
            self._check_digest(key)
        except DamagedError as error:
            self._remove(key, str(error))
            return False
        return self.lookup(key) is not None

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Packed tensors of an entry, their digest checked; ``LibraryError`` when damaged.

        Its record's time of change is set: the entry was used.
        """
        from safetensors.torch import load

        try:
            found = self._read_entry(key)
            if found is None:
                raise DamagedError("it is not there")
            data = self._tensor_path(key).read_bytes() if found[0].available else b""
            if digest(data) != found[1]["digest"]:
                raise DamagedError("altered tensors")
        except DamagedError as error:
            self._remove(key, str(error))
            raise LibraryError(
                f"library entry {key} is damaged ({error}) and was removed; run again"
            ) from None
        with suppress(OSError):
            os.utime(self._entry(key) / "entry.json")
        loaded: dict[str, Tensor] = load(data) if data else {}
        return loaded

    def row_errors(self, key: str) -> Tensor:
        """Squared error of every output, fp32 [O]; ``LibraryError`` when damaged."""
        import torch

        try:
            found = self._read_entry(key)
            if found is None:
                raise DamagedError("it is not there")
            data = self._errors_path(key).read_bytes()
            if digest(data) != found[1]["row_errors"]:
                raise DamagedError("altered row errors")
        except (DamagedError, OSError, KeyError) as error:
            self._remove(key, str(error))
            raise LibraryError(
                f"library entry {key} is damaged ({error}) and was removed; run again"
            ) from None
        return torch.frombuffer(bytearray(data), dtype=torch.float32)

    def store(
        self,
        record: VariantRecord,
        tensors: Mapping[str, Tensor],
        row_errors: Tensor | None = None,
    ) -> None:
        """Write an entry: tensors first, then its record; each under a temporary name.

        An unavailable variant has neither tensors nor errors, only its record.
        """
        from safetensors.torch import save

        data = errors = b""
        if record.available:
            data = save(dict(tensors))
            errors = b"" if row_errors is None else row_errors.float().numpy().tobytes()
            write_whole(self._tensor_path(record.key), data)
            write_whole(self._errors_path(record.key), errors)
        described = {"bytes": len(data), "digest": digest(data), "row_errors": digest(errors)}
        content = {"record": record.to_json(), "tensors": described}
        write_document(self._entry(record.key) / "entry.json", content)

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold an entry's lock; ``LibraryError`` at once when another process has it."""
        with only_builder(self._file("locks", key), self.folder):
            self._held.add(key)
            try:
                _remove_partials(self._entry(key))
                yield
            finally:
                self._held.discard(key)

    def ls(self) -> list[VariantRecord]:
        """Records of all whole entries, by key."""
        found = [self.lookup(path.name) for path in self._entry_folders()]
        return [record for record in found if record is not None]

    def entry_bytes(self) -> int:
        """Bytes of all entries."""
        return _folder_bytes(self.folder / "entries")

    def verify(self, advance: Callable[[int], object] = lambda read: None) -> dict[str, str]:
        """Key -> what is wrong, for every damaged entry; all bytes are read, nothing is removed.

        ``advance`` is told the bytes of every entry.
        """
        problems = {}
        for path in self._entry_folders():
            advance(_folder_bytes(path))
            try:
                self._check_digest(path.name)
            except DamagedError as error:
                problems[path.name] = str(error)
        return problems

    def remove_left_behind(self) -> None:
        """Remove what killed processes left: half-written files, and locks of finished entries."""
        for path in self.folder.rglob(f"*{PARTIAL}"):
            if is_left_behind(path):
                path.unlink(missing_ok=True)
        for path in (self.folder / "locks").glob("*"):
            if (self._entry(path.name) / "entry.json").is_file():
                with suppress(LibraryError), only_builder(path, self.folder):
                    pass

    def gc(self, keep_bytes: int | None = None) -> dict[str, int]:
        """Remove damaged and unfinished entries, entries of no problem, and working files; then,
        with ``keep_bytes``, the least recently used entries until so many bytes are left.

        What a later fit needs again it builds again.  ``LibraryError`` while another process uses
        the library: what it builds belongs to no problem yet.
        """
        with self._shared.alone():
            kept = {option.key for problem in self.problems() for option in problem.options}
            damaged = set(self.verify())
            entries = [
                path
                for path in self._entry_folders()
                if path.name in damaged or (kept and not self._belongs(path.name, kept))
            ]
            if keep_bytes is not None:
                entries += self._over(keep_bytes, set(entries))
            removed = [*entries, self.folder / "work", self.folder / "locks"]
            freed = sum(_folder_bytes(path) for path in removed)
            for path in removed:
                shutil.rmtree(path, ignore_errors=True)
            freed += _remove_partials(self.folder)
        return {"entries": len(entries), "bytes": freed}

    def _over(self, keep_bytes: int, removed: set[Path]) -> list[Path]:
        """The least recently used of the other entries, as many as are over ``keep_bytes``."""
        left = [path for path in self._entry_folders() if path not in removed]
        left.sort(key=lambda path: ((path / "entry.json").stat().st_mtime_ns, path.name))
        sizes = [_folder_bytes(path) for path in left]
        excess, count = sum(sizes) - keep_bytes, 0
        while excess > 0 and count < len(left):
            excess -= sizes[count]
            count += 1
        return left[:count]

    def _belongs(self, key: str, kept: set[str]) -> bool:
        """Whether an entry is an option of a problem, or refined or healed, or a recorded
        failure.
        """
        record = self.lookup(key)
        if record is None:
            return False
        return key in kept or kind_of(record) != "built"

    # Problems and results

    def write_problem(self, problem: Problem) -> None:
        """Keep what plans are solved from."""
        name = f"{problem.fingerprint}-{problem.statistics}"
        write_document(self._file("problems", f"{name}.json"), problem_to_json(problem))

    def problems(self) -> list[Problem]:
        """All problems, newest first; a damaged one is removed."""
        paths = list((self.folder / "problems").glob("*.json"))
        paths.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
        found = [(path, self._document(path)) for path in paths]
        return [problem_from_json(data, str(path)) for path, data in found if data is not None]

    def result(self, key: str) -> dict[str, Any] | None:
        """Figures measured before; None when there are none."""
        return self._document(self._file("results", f"{key}.json"))

    def store_result(self, key: str, figures: Mapping[str, Any]) -> None:
        """Keep figures."""
        write_document(self._file("results", f"{key}.json"), figures)

    def arrays(self, key: str) -> dict[str, Tensor] | None:
        """Tensors measured before; None when there are none, or they are damaged."""
        from safetensors.torch import load

        stored, path = self.result(key), self._arrays_path(key)
        if stored is None or not path.is_file():
            return None
        data = path.read_bytes()
        if digest(data) != stored["arrays"]:
            self.repairs.append(f"{path} was altered and removed")
            path.unlink()
            return None
        loaded: dict[str, Tensor] = load(data)
        return loaded

    def store_arrays(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that took long to measure."""
        from safetensors.torch import save

        data = save(dict(tensors))
        write_whole(self._arrays_path(key), data)
        self.store_result(key, {"arrays": digest(data)})

    def profiles(self) -> list[Profile]:
        """Machine profiles that were measured for this library, newest first."""
        paths = list((self.folder / "results").glob("profile-*.json"))
        paths.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
        found = [(path, self._document(path)) for path in paths]
        return [Profile.from_json(data, str(path)) for path, data in found if data is not None]

    def work_folder(self, name: str) -> Path:
        """A folder for the working files of one stage of one run."""
        path = self._file("work", name)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
        return path

    def other_bytes(self) -> dict[str, int]:
        """Bytes of what is no entry: ``results``, ``work`` (hidden states; ``gc`` removes them)."""
        return {name: _folder_bytes(self.folder / name) for name in ("results", "work")}

    # Paths

    def _file(self, folder: str, name: str) -> Path:
        """A path inside the library; names come from digests, never from outside it."""
        if not NAME.fullmatch(name):
            raise LibraryError(f"library {self.folder}: {name!r} is no name for one of its files")
        return self.folder / folder / name

    def _entry(self, key: str) -> Path:
        return self._file(f"entries/{key[:2]}", key)

    def _tensor_path(self, key: str) -> Path:
        return self._entry(key) / "tensors.safetensors"

    def _errors_path(self, key: str) -> Path:
        return self._entry(key) / "row_errors.f32"

    def _arrays_path(self, key: str) -> Path:
        return self._file("results", f"{key}.safetensors")

    def _entry_folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("entries/*/*") if path.is_dir())

    # Damage

    def _read_entry(self, key: str) -> tuple[VariantRecord, dict[str, Any]] | None:
        """Record, and size and digest of the tensors; ``DamagedError``, None when absent."""
        stored = read_document(self._entry(key) / "entry.json")
        if stored is None:
            return None
        try:
            record, tensors = VariantRecord.from_json(stored["record"]), stored["tensors"]
            expected = tensors["bytes"] if record.available else 0
        except (KeyError, TypeError) as error:
            raise DamagedError(f"not a record: {error}") from None
        if record.key != key:
            raise DamagedError(f"the record of {record.key}")
        path = self._tensor_path(key)
        found = path.stat().st_size if record.available and path.is_file() else 0
        if found != expected:
            raise DamagedError(f"{found} bytes of tensors, {expected} were written")
        if record.available and not self._errors_path(key).is_file():
            raise DamagedError("no row errors")
        return record, tensors

    def _check_digest(self, key: str) -> None:
        found = self._read_entry(key)
        if found is None:
            raise DamagedError("unfinished")
        record, tensors = found
        if not record.available:
            return
        if file_digest(self._tensor_path(key)) != tensors["digest"]:
            raise DamagedError("altered tensors")
        if file_digest(self._errors_path(key)) != tensors.get("row_errors"):
            raise DamagedError("altered row errors")

    def _document(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_document(path)
        except DamagedError as error:
            self.repairs.append(f"{path} was damaged ({error}) and removed")
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def _remove(self, key: str, reason: str) -> None:
        """Remove a damaged entry, unless another process is building it now."""
        self.repairs.append(f"library entry {key} was damaged ({reason}) and removed")
        if key in self._held:
            shutil.rmtree(self._entry(key), ignore_errors=True)
            return
        with suppress(LibraryError), self.building(key):
            shutil.rmtree(self._entry(key), ignore_errors=True)


def _remove_partials(folder: Path) -> int:
    """Remove what a killed process left half-written; the bytes that frees."""
    freed = 0
    for path in folder.rglob(f"*{PARTIAL}"):
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
