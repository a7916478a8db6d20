"""Decoding one token at a time: packed folders, tables as int8 rows, against the same model in
bf16.  Every format that a preset offers is there: it must be no slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.models import random_llama, uniform_folder
from blockwright.evaluate import Loading, ask_fresh_process
from blockwright.pipeline.presets import CANDIDATES, candidates_of
from blockwright.types import Speed

FORMATS = ("int4-g128", "int6-g128", "int8")
BOUNDS = {"int4-g128": 2.5, "int6-g128": 1.4, "int8": 1.7}
"""Least tokens/s against bf16."""
OFFERED_BOUND = 1.0
"""That of every other format that a preset offers."""
RESIDENT_BOUND = 0.45
"""Largest resident memory of int4 against bf16."""
PREFILL_TOKENS = 64


def run(work: Path, blocks: int, rounds: int) -> dict[str, Any]:
    """Every model in a fresh process, one after another, ``rounds`` times; the best of each."""
    model = random_llama(work / f"llama-{blocks}", blocks)
    folders = {"bf16": model}
    for name in formats():
        folders[name] = uniform_folder(model, name, work / f"llama-{blocks}-{name}-tables")
    ids = torch.randint(0, 32000, (PREFILL_TOKENS,), generator=torch.Generator().manual_seed(1))
    best: dict[str, Speed] = {}
    for _ in range(rounds):
        for name, folder in folders.items():
            loading = Loading(folder=folder, task="causal-lm")
            speed = ask_fresh_process(loading, speed_ids=ids).speed
            if speed is not None and faster(speed, best.get(name)):
                best[name] = speed
    return {name: figures(name, speed, best["bf16"]) for name, speed in best.items()}


def formats() -> list[str]:
    """Those with a promise of their own, then all that presets offer, narrow first."""
    offered = {candidate.format for preset in CANDIDATES for candidate in candidates_of(preset)}
    return [*FORMATS, *sorted(offered.difference(FORMATS))]


def faster(speed: Speed, other: Speed | None) -> bool:
    """Whether one decodes faster."""
    return other is None or (speed.decode_tokens_per_second or 0.0) > (
        other.decode_tokens_per_second or 0.0
    )


def figures(name: str, speed: Speed, baseline: Speed) -> dict[str, Any]:
    """A model's speed and memory, and their ratios to bf16."""
    decode = speed.decode_tokens_per_second or 0.0
    prefill = speed.prefill_tokens_per_second or 0.0
    ratio = decode / (baseline.decode_tokens_per_second or 1.0)
    return {
        "decode_tokens_per_second": decode,
        "decode_ratio": ratio,
        "decode_bound": None if name == "bf16" else BOUNDS.get(name, OFFERED_BOUND),
        "prefill_tokens_per_second": prefill,
        "prefill_ratio": prefill / (baseline.prefill_tokens_per_second or 1.0),
        "resident_bytes": speed.resident_bytes,
        "resident_ratio": speed.resident_bytes / baseline.resident_bytes,
        "resident_bound": RESIDENT_BOUND if name == "int4-g128" else None,
    }
