"""What a runner is asked and what it answers, as JSON files.

Read on both sides: by the benchmark, and in a peer's environment, where there is no blockwright.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DENSE_FILE = "model.safetensors"
"""fp32 weights [out, in] of the quantized linears, and whatever else the peer changed, by the
model's parameter names.
"""
ANSWER_FILE = "answer.json"
COMPRESSED_FILE = "compressed"
"""Written when the result is saved: memory after it belongs to what proves the result."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One quantization."""

    model: str
    """Folder of the original."""
    tokens: str
    """safetensors file with ``ids``, int64 [rows, T]."""
    out: str
    """Folder for what is stored, for the dense weights and for the answer."""
    bits: int
    group_size: int
    seed: int
    threads: int
    symmetric: bool = True
    steps: int = 200
    """Of AutoRound, per block."""
    average_bits: float | None = None
    """AutoScheme: bits per weight, scales and zeros included, of a mix of ``options``."""
    options: tuple[int, ...] = ()
    algorithm: str = ""
    """Where a peer has several; empty: its first."""
    dense: bool = True
    """Whether dense weights are wanted; without them the job is for its time."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "options": tuple(data["options"])})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of it."""

    quantize_seconds: float
    """Quantizing alone."""
    load_seconds: float
    """Reading the original and preparing it."""
    save_seconds: float
    peak_bytes: int
    """Largest resident memory of the process until all was saved."""
    stored_bytes: Mapping[str, Mapping[str, int]]
    """Module of a quantized linear -> tensor (codes, scales, zeros, indices) -> bytes as the peer
    stores it.
    """
    counted: str
    """How ``stored_bytes`` were counted."""
    settings: Mapping[str, Any]
    """What the peer was told."""
    versions: Mapping[str, str]
    logits_difference: float | None = None
    """||peer's own logits - those of plain transformers with the dense weights|| over the norm of
    the former.
    """

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Answer:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class SpeedJob:
    """One model to be decoded: prepared once, then timed in fresh processes."""

    model: str
    """Folder of the original."""
    stored: str
    """Folder for what the peer stores."""
    out: str
    """File of the answer."""
    bits: int
    """Of the block linears; 16: as they are.  Tables take 8 where linears take less than 16."""
    group_size: int
    """Of 4 bits, where the peer has a choice."""
    ids: tuple[int, ...]
    """The prompt."""
    decode_tokens: int
    threads: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> SpeedJob:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "ids": tuple(data["ids"])})


@dataclass(frozen=True, kw_only=True)
class SpeedAnswer:
    """What one fresh process found."""

    prefill_seconds: float
    """Least time of the whole prompt; logits of its last position alone."""
    decode_seconds: float
    """Least time of one token behind it, batch 1."""
    library_bytes: int
    """Resident before the model was loaded: interpreter and libraries."""
    resident_bytes: int
    """After decoding."""
    logits: Sequence[float]
    """Behind the prompt, [V]."""
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> SpeedAnswer:
        return cls(**json.loads(path.read_text(encoding="utf-8")))
