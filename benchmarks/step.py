"""What one decoding step spends its time on: operators of a packed folder, tables as int8 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

import blockwright  # noqa: F401 - folders load
from benchmarks.decode import FORMATS
from benchmarks.models import random_llama, uniform_folder

PROMPT_TOKENS, STEPS = 128, 10
SHOWN = 8
"""Operators by name; what the others take is one figure."""


def run(work: Path, blocks: int) -> dict[str, Any]:
    """Milliseconds of every format's step by operator; ``outside``: Python, between operators."""
    model = random_llama(work / f"llama-{blocks}", blocks)
    return {
        name: profiled(uniform_folder(model, name, work / f"llama-{blocks}-{name}-tables"))
        for name in FORMATS
    }


@torch.inference_mode()
def profiled(folder: Path) -> dict[str, float]:
    """One folder, loaded as a user would."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids = torch.randint(0, 32000, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    cache = model(ids, use_cache=True).past_key_values
    token = ids[:, :1]
    for _ in range(3):
        model(token, past_key_values=cache)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            model(token, past_key_values=cache)
    events = profiler.events() or []
    whole = max(event.time_range.end for event in events)
    whole -= min(event.time_range.start for event in events)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    taken = {row.key: row.self_cpu_time_total / STEPS / 1000 for row in rows}
    shown = dict(list(taken.items())[:SHOWN])
    outside = whole / STEPS / 1000 - sum(taken.values())
    return shown | {
        "other operators": sum(taken.values()) - sum(shown.values()),
        "outside": outside,
    }
