"""Time and memory of compressing: ``fit --preset fast --bits 4.3`` against every peer's int4-g128
on the same tokens, and the time of a second budget.  Random weights of the shapes of a
1.1B-parameter Llama unless a model is given.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.memory import character_tokenizer, random_words
from benchmarks.models import random_llama
from benchmarks.peers.environments import failed, last_line
from benchmarks.peers.job import Job
from benchmarks.peers.judging import write_tokens
from benchmarks.peers.running import LOG_FILE, PEERS, ROOT, PeerRun, run_logged, run_peer
from blockwright.cli.demo import bundled_model
from blockwright.errors import UserError
from blockwright.pipeline.opening import open_run
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Preset

BITS, SECOND_BITS = 4.3, 3.5
RATIO_BOUND = 1.0
"""Longest fit over the fastest calibrated peer, evaluation left out on both sides."""
MEMORY_BOUND = 0.5
"""Largest peak memory of a fit over the least of a calibrated peer."""
SECOND_BUDGET_BOUND_SECONDS = 5.0
EVAL_TOKENS = 2_048
SMALL_VOCABULARY = 64
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    work: Path
    model: Path | None
    """None: random weights."""
    blocks: int
    """Of the random model."""
    tokens: int
    threads: int
    peers: Sequence[str]
    steps: int
    """Of AutoRound."""

    @property
    def folder(self) -> Path:
        """The model, random weights written where none is given."""
        if self.model:
            return self.model
        folder = random_llama(self.work / f"llama-{self.blocks}", self.blocks)
        character_tokenizer().save_pretrained(folder)
        return folder


def run(setting: Setting) -> Row:
    """Peers and ours, one after the other; ours with a fresh library."""
    request = request_of(setting, setting.folder)
    peers = {name: peer_figures(setting, request, name) for name in setting.peers}
    ours = fit_figures(setting.work, request)
    library = request.library or Path()
    second = second_budget_seconds(library, setting.work / "second.json")
    return {
        "model": str(request.model),
        "random": setting.model is None,
        "tokens": setting.tokens,
        "threads": setting.threads,
        "blockwright": ours,
        "peers": peers,
        "ratios": ratios(ours, peers),
        "second_budget_seconds": second,
        "second_budget_bound_seconds": SECOND_BUDGET_BOUND_SECONDS,
    }


def request_of(setting: Setting, model: Path) -> FitRequest:
    """The fit, with nothing left of an earlier one."""
    text = setting.work / "text.txt"
    text.write_text(random_words(8 * setting.tokens), encoding="utf-8")
    out, library = setting.work / f"timed-{model.name}", setting.work / f"library-{model.name}"
    for folder in (out, library):
        shutil.rmtree(folder, ignore_errors=True)
    return FitRequest(
        model=str(model.resolve()),
        out=out,
        budget=Budget(bits=BITS),
        preset=Preset.FAST,
        calibration=text,
        library=library,
        calibration_tokens=setting.tokens,
        eval_tokens=EVAL_TOKENS,
        threads=setting.threads,
        speed=False,
    )


def peer_figures(setting: Setting, request: FitRequest, name: str) -> Row:
    """A peer's loading, quantizing and saving; its error when it fails.

    Always run anew, behind a run on a small model: a first run on a machine may compile.
    """
    tokens = write_tokens(open_run(request, SilentProgress()), setting.work / "timed.safetensors")
    small = setting.work / "small.safetensors"
    save_file({"ids": load_file(tokens)["ids"][:4] % SMALL_VOCABULARY}, small)
    job = Job(
        model=request.model,
        tokens=str(tokens.resolve()),
        out="",
        bits=4,
        group_size=128,
        seed=request.seed,
        threads=setting.threads,
        steps=setting.steps,
        dense=False,
    )
    warm = replace(job, model=str(bundled_model()), tokens=str(small.resolve()), steps=1)
    now = f"timed at {time.time_ns()}"
    try:
        run_peer(name, warm, setting.work, f"{now}, small model")
        return seconds_of(run_peer(name, job, setting.work, now))
    except UserError as error:
        return failed(error)


def seconds_of(done: PeerRun) -> Row:
    """Seconds comparable with those of a fit: from reading the original to the saved folder."""
    answer = done.answer
    parts = {
        "load_seconds": answer.load_seconds,
        "quantize_seconds": answer.quantize_seconds,
        "save_seconds": answer.save_seconds,
    }
    return {
        "seconds": sum(parts.values()),
        **parts,
        "peak_bytes": answer.peak_bytes,
        "tree_bytes": done.tree_bytes,
        "settings": answer.settings,
        "versions": answer.versions,
    }


def fit_figures(work: Path, request: FitRequest) -> Row:
    """Our fit in a process of its own, by stages; ``UserError`` with its last line if it fails."""
    folder = work / "timed-fit"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    answer, marker = folder / "answer.json", folder / "written"
    asked = {
        "model": request.model,
        "out": str(request.out.resolve()),
        "bits": BITS,
        "preset": str(request.preset),
        "calibration": str(Path(str(request.calibration)).resolve()),
        "library": str(Path(str(request.library)).resolve()),
        "tokens": request.calibration_tokens,
        "eval_tokens": request.eval_tokens,
        "threads": request.threads,
        "answer": str(answer.resolve()),
        "marker": str(marker.resolve()),
    }
    path = folder / "request.json"
    path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.peers.timed_fit", str(path.resolve())]
    log = (folder / LOG_FILE).resolve()
    code, tree = run_logged(command, ROOT, {}, log=str(log), marker=marker)
    if code:
        raise UserError(f"the fit failed ({last_line(log)}); all it said is in {log}")
    figures: Row = json.loads(answer.read_text(encoding="utf-8"))
    return figures | {"tree_bytes": tree}


def ratios(ours: Row, peers: Mapping[str, Row]) -> list[Row]:
    """Time and peak memory of the fit over those of every peer, and over the best calibrated."""
    done = {name: row for name, row in peers.items() if "error" not in row}
    found = [ratio(ours, row, name) for name, row in done.items()]
    calibrated = {name: row for name, row in done.items() if PEERS[name].calibrated}
    if calibrated:
        best = {
            figure: min(row[figure] for row in calibrated.values())
            for figure in ("seconds", "tree_bytes")
        }
        bounds = {"time_bound": RATIO_BOUND, "memory_bound": MEMORY_BOUND}
        found.append(ratio(ours, best, "the best calibrated") | bounds)
    return found


def ratio(ours: Row, rival: Mapping[str, float], name: str) -> Row:
    """Ours over a rival's."""
    return {
        "rival": name,
        "time": ours["fit_seconds"] / rival["seconds"],
        "memory": ours["tree_bytes"] / rival["tree_bytes"],
    }


def second_budget_seconds(library: Path, plan: Path) -> float:
    """Another budget from the finished library, as a user asks for it: a process."""
    plan.unlink(missing_ok=True)
    command = [sys.executable, "-m", "blockwright", "plan", str(library.resolve())]
    command += ["--bits", str(SECOND_BITS), "--out", str(plan.resolve())]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began
