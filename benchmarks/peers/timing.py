"""Time of ``fit --preset fast --bits 4.3`` against GPTQModel int4-g128 on the same tokens, and of a
second budget.  Random weights of the shapes of a 1.1B-parameter Llama.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.memory import character_tokenizer, random_words
from benchmarks.models import random_llama
from benchmarks.peers.job import Answer, Job
from benchmarks.peers.judging import write_tokens
from benchmarks.peers.running import ROOT, run_peer
from blockwright.cli.demo import bundled_model
from blockwright.pipeline.opening import open_run
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Preset

BITS, SECOND_BITS = 4.3, 3.5
RATIO_BOUND = 1.0
"""Longest fit over GPTQModel, evaluation left out on both sides."""
SECOND_BUDGET_BOUND_SECONDS = 5.0
EVAL_TOKENS = 2_048


def run(work: Path, blocks: int, tokens: int, threads: int) -> dict[str, Any]:
    """Both, one after the other; ours with a fresh library."""
    model = random_llama(work / f"llama-{blocks}", blocks)
    character_tokenizer().save_pretrained(model)
    text = work / "text.txt"
    text.write_text(random_words(4 * tokens), encoding="utf-8")
    out, library = work / f"timed-{blocks}", work / f"timed-{blocks}-library"
    for folder in (out, library):
        shutil.rmtree(folder, ignore_errors=True)
    request = FitRequest(
        model=str(model),
        out=out,
        budget=Budget(bits=BITS),
        preset=Preset.FAST,
        calibration=text,
        library=library,
        calibration_tokens=tokens,
        eval_tokens=EVAL_TOKENS,
        threads=threads,
        speed=False,
    )
    theirs = peer_seconds(work, request)
    ours = fit_seconds(work, request)
    second = second_budget_seconds(library, work / "second.json")
    ratio = ours["fit_seconds"] / theirs["seconds"]
    return {
        "model": f"random, Llama-shaped, hidden 2048, {blocks} blocks",
        "tokens": tokens,
        "threads": threads,
        "blockwright": ours,
        "gptqmodel": theirs,
        "time_ratio": ratio,
        "time_ratio_bound": RATIO_BOUND,
        "second_budget_seconds": second,
        "second_budget_bound_seconds": SECOND_BUDGET_BOUND_SECONDS,
    }


def peer_seconds(work: Path, request: FitRequest) -> dict[str, Any]:
    """GPTQModel's loading, quantizing and saving; always run anew, behind one on a small model: its
    first run on a machine compiles an extension.
    """
    opened = open_run(request, SilentProgress())
    tokens = write_tokens(opened, work / "timed-tokens.safetensors")
    job = Job(
        model=str(bundled_model()),
        tokens=str(tokens.resolve()),
        out="",
        bits=4,
        group_size=128,
        seed=request.seed,
        threads=request.threads or 1,
        dense=False,
    )
    now = f"timed at {time.time_ns()}"
    run_peer("gptqmodel", job, work, f"{now}, small model")
    job = replace(job, model=str(Path(request.model).resolve()))
    answer = run_peer("gptqmodel", job, work, now).answer
    return peer_figures(answer)


def peer_figures(answer: Answer) -> dict[str, Any]:
    """Seconds comparable with those of a fit: from reading the original to the saved folder."""
    parts = {
        "load_seconds": answer.load_seconds,
        "quantize_seconds": answer.quantize_seconds,
        "save_seconds": answer.save_seconds,
    }
    return {
        "seconds": sum(parts.values()),
        **parts,
        "peak_bytes": answer.peak_bytes,
        "settings": answer.settings,
        "versions": answer.versions,
    }


def fit_seconds(work: Path, request: FitRequest) -> dict[str, Any]:
    """Our fit in a process of its own, by stages."""
    asked = {
        "model": request.model,
        "out": str(request.out),
        "bits": BITS,
        "preset": str(request.preset),
        "calibration": str(request.calibration),
        "library": str(request.library),
        "tokens": request.calibration_tokens,
        "eval_tokens": request.eval_tokens,
        "threads": request.threads,
    }
    path = work / "timed-request.json"
    path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.peers.timed_fit", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def second_budget_seconds(library: Path, plan: Path) -> float:
    """Another budget from the finished library, as a user asks for it: a process."""
    plan.unlink(missing_ok=True)
    command = [sys.executable, "-m", "blockwright", "plan", str(library)]
    command += ["--bits", str(SECOND_BITS), "--out", str(plan)]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began
