"""Files that are whole or not there: written under a temporary name, synced, renamed.

JSON documents carry a digest of themselves, so that one altered byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockwright.errors import LibraryError, OutputError

KEY_BYTES = 20
PARTIAL = ".partial"
WRITER = re.compile(r"\.(\d+)-[0-9a-f]{8}\.partial")
"""End of a temporary name: the process that writes."""
CHUNK_BYTES = 1 << 20


class DamagedError(LibraryError):
    """A file that is there but is not what was written; whoever meets it removes it."""


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a file, read in pieces."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            state.update(piece)
    return state.hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with one spelling; ``ValueError`` for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with its digest; raises ``OutputError``."""
    try:
        document = {**content, "digest": digest(canonical(content))}
        text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LibraryError(f"{path} would not be JSON: {error}") from None
    write_whole(path, text.encode() + b"\n")


def read_document(path: Path) -> dict[str, Any] | None:
    """The object without its digest; None when the file is not there.

    Raises ``DamagedError`` when it is not as written.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"no JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError("no JSON object")
    found = content.pop("digest", None)
    try:
        expected = digest(canonical(content))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"no JSON: {error}") from None
    if found != expected:
        raise DamagedError("altered")
    return content


def write_whole(path: Path, data: bytes) -> None:
    """Whole or not at all, whatever happens meanwhile; raises ``OutputError``."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def is_left_behind(partial: Path) -> bool:
    """Whether a temporary file's process is no more."""
    writer = WRITER.search(partial.name)
    if writer is None:
        return False
    try:
        os.kill(int(writer[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}; free space or permissions there, or give"
        " another --library; the same command resumes"
    )
