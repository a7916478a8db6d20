"""Header of a safetensors file: u64 length, JSON of names, dtypes, shapes, offsets; then data."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blockwright.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """All tensors of a file, in the header's order; ``CheckpointError`` if it is damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH.size)
            length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
            text = file.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if length == 0 or length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is no safetensors file: it declares a {length}-byte header")
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header needs {LENGTH.size + length} bytes, the file has"
            f" {size}; download or copy it again"
        )
    return _entries(path, _parse(path, text), LENGTH.size + length, size)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path} is damaged: its header names {twice!r} twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is no safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no JSON object")
    return header


def _entries(path: Path, header: dict[str, Any], base: int, size: int) -> dict[str, TensorEntry]:
    found = {}
    for name, item in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, item, base)
    end = base
    for entry in sorted(found.values(), key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != end:
            raise CheckpointError(f"{path} is damaged: its tensors overlap or leave holes")
        end += entry.nbytes
    if end != size:
        word = "truncated" if size < end else "damaged"
        raise CheckpointError(
            f"{path} is {word}: its header declares {end} bytes, the file has {size};"
            " download or copy it again"
        )
    return found


def _entry(path: Path, name: str, item: Any, base: int) -> TensorEntry:
    try:
        code, shape = str(item["dtype"]), tuple(map(_size, item["shape"]))
        begin, end = map(_size, item["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} is damaged: its header's entry of {name} is malformed"
        ) from None
    if code not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} has dtype {code}, which torch does not know"
            f" (known: {', '.join(DTYPES)})"
        )
    nbytes = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{path} is damaged: {name} of {code} {list(shape)} takes {nbytes} bytes,"
            f" its header gives it {end - begin}"
        )
    return TensorEntry(path, DTYPES[code], shape, base + begin, nbytes)


def _size(value: Any) -> int:
    """A number of elements or bytes; ``ValueError`` for what torch could not count."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value
