"""What a runner is asked and what it answers, as JSON files.

Read on both sides: by the benchmark, and in a peer's environment, where there is no blockwright.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DENSE_FILE = "model.safetensors"
"""fp32 weights [out, in] of the quantized linears, and whatever else the peer changed, by the
model's parameter names.
"""
ANSWER_FILE = "answer.json"


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
