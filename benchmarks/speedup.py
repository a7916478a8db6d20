"""``fit --speedup 2``: what was asked, predicted by the machine profile, and timed afterwards in
fresh processes; and predicted against measured memory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import character_tokenizer, random_words
from benchmarks.models import random_llama
from blockwright.evaluate import Loading, time_in_turn
from blockwright.types import Workload

ASKED = 2.0
SHORTFALL_BOUND = 0.05
"""Largest shortfall of the speedup, as a share of what was asked."""
MEMORY_BOUND = 0.10
"""Largest difference of predicted and measured memory, as a share of the measured."""


def run(work: Path, blocks: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Fit the random model to twice its speed, then time it against the original once more."""
    model = random_llama(work / f"llama-{blocks}", blocks)
    character_tokenizer().save_pretrained(model)
    out = work / f"fitted-{blocks}-faster"
    fitted = fit(work, model, out, tokens)
    workload = Workload()
    loadings = [Loading(folder=folder, task="causal-lm") for folder in (model, out)]
    original, faster = time_in_turn(loadings[0], loadings[1], workload, rounds)
    speedup = original.least_ns / faster.least_ns
    predicted = fitted["ram_bytes_predicted"]
    return {
        "workload": str(workload),
        "speedup_asked": ASKED,
        "speedup_predicted": fitted["speedup_predicted"],
        "speedup_measured_in_fit": fitted["speedup_measured"],
        "speedup_in_fresh_process": speedup,
        "shortfall": max(0.0, 1 - speedup / ASKED),
        "shortfall_bound": SHORTFALL_BOUND,
        "latency_ms_original": original.least_ns / 1e6,
        "latency_ms_fitted": faster.least_ns / 1e6,
        "latency_ms_predicted": fitted["latency_ms_predicted"],
        "bits_per_weight": fitted["bits_per_weight"],
        "fit_seconds": fitted["seconds"],
        "ram_bytes_predicted": predicted,
        "ram_bytes_measured": faster.model_bytes,
        "ram_bytes_measured_original": original.model_bytes,
        "ram_difference": abs(predicted - faster.model_bytes) / faster.model_bytes,
        "ram_difference_bound": MEMORY_BOUND,
    }


def fit(work: Path, model: Path, out: Path, tokens: int) -> dict[str, Any]:
    """One fit in a process of its own; its JSON."""
    text = work / "text.txt"
    text.write_text(random_words(4 * tokens), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "blockwright", "fit", str(model), "--speedup", str(ASKED)]
    command += ["--preset", "fast", "--out", str(out), "--library", str(work / "library")]
    command += ["--calibration", str(text), "--calibration-tokens", str(tokens)]
    command += ["--eval-tokens", "2048", "--no-speed", "--json"]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
