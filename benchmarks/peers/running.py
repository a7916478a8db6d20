"""Runs peers on jobs; a finished job is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import (
    ENVIRONMENTS,
    PeerError,
    ensure_environment,
    last_line,
    made_from,
)
from benchmarks.peers.job import ANSWER_FILE, COMPRESSED_FILE, Answer, Job
from benchmarks.peers.memory_tree import PeakWatch

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT_FOLDER = ROOT / "build" / "peers"
LOG_FILE = "log.txt"
PEAK_FILE = "peak.json"
RUNNER_KINDS = ("run", "decode")
"""How runners of one peer begin; the others are shared."""


@dataclass(frozen=True)
class Peer:
    """A tool with its settings."""

    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the job."""
    mixed: bool = False
    """Whether it mixes bits to an average instead of using one number everywhere."""
    calibrated: bool = True
    """Whether it looks at text."""


PEERS = {
    "gptqmodel": Peer("gptqmodel"),
    "autoround": Peer("autoround"),
    "hqq": Peer("hqq", calibrated=False),
    "llmcompressor": Peer("llmcompressor"),
    "llmcompressor-awq": Peer("llmcompressor", {"algorithm": "awq"}),
    "torchao": Peer("torchao", calibrated=False),
    "quanto": Peer("quanto", calibrated=False),
    "gptqmodel-asym": Peer("gptqmodel", {"symmetric": False}),
    "autoround-asym": Peer("autoround", {"symmetric": False}),
    "autoscheme": Peer("autoround", {"options": (2, 3, 4, 8)}, mixed=True),
}
DEFAULT_PEERS = (
    "gptqmodel",
    "autoround",
    "hqq",
    "llmcompressor",
    "llmcompressor-awq",
    "torchao",
    "quanto",
    "autoscheme",
)


@dataclass(frozen=True)
class PeerRun:
    """A finished job."""

    folder: Path
    answer: Answer
    tree_bytes: int
    """Largest resident memory of the runner and all that it started, until it had saved."""


def run_peer(name: str, job: Job, work: Path, content: str) -> PeerRun:
    """Run a peer, or find what it did before.

    ``job.out`` is chosen here; ``content``: digest of model and tokens, whatever their paths.
    Raises ``PeerError`` naming the log when the peer fails.
    """
    peer = PEERS[name]
    job = replace(job, **peer.settings)
    folder = work / "jobs" / f"{name}-int{job.bits}-g{job.group_size}-{key_of(peer, job, content)}"
    if not (folder / ANSWER_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start(name, peer, replace(job, out=str(folder.resolve())), folder)
    peak = json.loads((folder / PEAK_FILE).read_text(encoding="ascii"))
    return PeerRun(folder, Answer.read(folder / ANSWER_FILE), peak)


def key_of(peer: Peer, job: Job, content: str) -> str:
    """Digest of everything that decides a job's outcome."""
    asked = asdict(replace(job, model="", tokens="", out=""))
    parts = [asked, content, made_from(ENVIRONMENTS[peer.environment])]
    return digest([*parts, runner_sources(peer.environment)])


def runner_sources(environment: str | None) -> list[str]:
    """The programs that run in a peer's environment: its own, and what runners share."""
    runners = Path(__file__).resolve().parent / "runners"
    return [
        path.read_text(encoding="utf-8")
        for path in sorted(runners.glob("*.py"))
        if path.stem.partition("_")[0] not in RUNNER_KINDS
        or path.stem.partition("_")[2] == environment
    ]


def digest(parts: Sequence[Any]) -> str:
    """Of anything that is JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def start(name: str, peer: Peer, job: Job, folder: Path) -> None:
    """One process in the peer's environment; its output goes to a log in ``folder``."""
    what = f"int{job.bits}-g{job.group_size}"
    python = ensure_environment(ENVIRONMENTS[peer.environment], ENVIRONMENT_FOLDER)
    job.write(folder / "job.json")
    print(f"{name}: {what}, seed {job.seed}", file=sys.stderr, flush=True)
    command = [str(python), "-m", f"benchmarks.peers.runners.run_{peer.environment}"]
    code, peak = run_logged(
        [*command, str((folder / "job.json").resolve())],
        folder,
        variables_of(peer.environment, job.threads),
        marker=folder / COMPRESSED_FILE,
    )
    if code or not (folder / ANSWER_FILE).is_file():
        log = folder / LOG_FILE
        raise PeerError(f"{name} failed on {what} with exit code {code} ({last_line(log)})", log)
    (folder / PEAK_FILE).write_text(json.dumps(peak), encoding="ascii")


def variables_of(environment: str | None, threads: int) -> dict[str, str]:
    """What a runner's process finds in its environment, beside this one's."""
    chosen = ENVIRONMENTS[environment].run_variables if environment else {}
    return {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT) if environment else f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        **chosen,
    }


def run_logged(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    *,
    log: str = LOG_FILE,
    marker: Path | None = None,
) -> tuple[int, int]:
    """Exit code, and the largest resident memory of the process with all its children until
    ``marker`` was written (until its end without one).  What it says goes to ``folder / log``.
    """
    with (folder / log).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | dict(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with PeakWatch(process.pid) as watch:
            code = process.wait()
    return code, watch.peak_bytes(marker)
